/* Opens mutated archives, in one process: fuzz_sqz N SEED FILE.sqz...; build with -fsanitize=address,undefined.
   Most mutants get a right checksum, and some a header that is unpacked, changed and stored anew. */
#include "squeezenet.c"

#include <stdio.h>
#include <stdlib.h>

static uint64_t seed;

static uint32_t draw(uint32_t n) { /* 0 .. n - 1; xorshift64* */
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return n ? (uint32_t)((seed * 2685821657736338717u) >> 32) % n : 0;
}

static void mutate(uint8_t *data, size_t n) {
    for (uint32_t times = 1 + draw(4); times && n; times--) {
        size_t at = draw((uint32_t)n);
        switch (draw(4)) {
        case 0: data[at] ^= (uint8_t)(1 << draw(8)); break;
        case 1: data[at] = (uint8_t)draw(256); break;
        case 2: data[at] = data[draw((uint32_t)n)]; break;
        default: data[at] = (uint8_t)"09[]{}\",:-e\\"[draw(12)];
        }
    }
}

static void put(uint8_t *p, uint32_t value, int n) {
    for (int i = 0; i < n; i++)
        p[i] = (uint8_t)(value >> 8 * i);
}

/* The header unpacked, changed and packed as stored blocks; returns the new size. */
static size_t change_header(const uint8_t *from, size_t n, uint8_t *to) {
    static struct inflate z;
    static uint8_t text[MAX_HEADER];
    uint32_t n_packed = little(from + 12), n_text = 0, a = 1, b = 0;
    size_t at = N_HEAD;
    int c;
    begin_inflate(&z, from + N_HEAD, n_packed);
    while ((c = inflate_byte(&z)) != END)
        text[n_text++] = (uint8_t)c;
    mutate(text, n_text);
    for (uint32_t i = 0; i < n_text; i++) {
        a = (a + text[i]) % 65521;
        b = (b + a) % 65521;
    }
    memcpy(to, from, N_HEAD);
    to[at++] = 0x78;
    to[at++] = 0x01;
    for (uint32_t i = 0; i < n_text;) {
        uint32_t m = n_text - i < 65535 ? n_text - i : 65535;
        to[at] = i + m == n_text;
        put(to + at + 1, m, 2);
        put(to + at + 3, ~m, 2);
        memcpy(to + at + 5, text + i, m);
        at += 5 + m;
        i += m;
    }
    for (int i = 0; i < 4; i++)
        to[at++] = (uint8_t)((b << 16 | a) >> (24 - 8 * i));
    put(to + 12, (uint32_t)at - N_HEAD, 4);
    memcpy(to + at, from + N_HEAD + n_packed, n - N_HEAD - n_packed);
    return at + n - N_HEAD - n_packed;
}

int main(int argc, char **argv) {
    long count = argc > 3 ? atol(argv[1]) : 0, seen[SQZ_N_CODE] = {0};
    seed = argc > 3 ? strtoull(argv[2], NULL, 10) * 2 + 1 : 1;
    for (long i = 0; i < count; i++) {
        FILE *file = fopen(argv[3 + i % (argc - 3)], "rb");
        if (!file || fseek(file, 0, SEEK_END))
            return 2;
        size_t n = (size_t)ftell(file), need = 0;
        uint8_t *from = malloc(n), *to = malloc(n + (1 << 20)), *exact;
        rewind(file);
        if (!from || !to || fread(from, 1, n, file) != n)
            return 2;
        fclose(file);
        uint32_t kind = draw(8), n_packed = little(from + 12);
        memcpy(to, from, n);
        if (kind < 3)
            n = change_header(from, n, to);
        else if (kind < 6)
            mutate(to + N_HEAD + n_packed, n - N_HEAD - n_packed);
        else if (kind == 6)
            mutate(to, n);
        else
            n = draw((uint32_t)n);
        if (n > N_HEAD && draw(16))
            sha256(to + N_HEAD, n - N_HEAD, to + 20);
        exact = malloc(n ? n : 1); /* so that a byte too far is found */
        if (!exact)
            return 2;
        memcpy(exact, to, n);
        int code = sqz_memory(exact, n, &need);
        if (!code && need <= (size_t)1 << 26) {
            sqz_network *net;
            uint8_t *block = malloc(need);
            if (!block)
                return 2;
            code = sqz_open(exact, n, block, need, &net);
            if (!code && sqz_crop(net) <= 16) {
                uint8_t pixels[5 * 7 * 3];
                float *probabilities = malloc((size_t)sqz_n_class(net) * sizeof *probabilities);
                memset(pixels, (int)draw(256), sizeof pixels);
                code = sqz_classify(net, pixels, 5, 7, 3, probabilities);
                for (int c = 0; c < sqz_n_class(net); c++) {
                    const char *name = sqz_class_name(net, c);
                    if (name && strlen(name) > 4 * MAX_CLASS_NAME)
                        return 1;
                }
                free(probabilities);
            }
            free(block);
        }
        seen[code]++;
        free(exact);
        free(to);
        free(from);
    }
    for (int code = 0; code < SQZ_N_CODE; code++)
        if (seen[code])
            printf("%ld %s\n", seen[code], sqz_message(code));
    return 0;
}
