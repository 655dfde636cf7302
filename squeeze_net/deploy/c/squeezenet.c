/* Reads a `.sqz` (squeeze_net/weights/formats/sqz/FORMAT.md) and computes its network; squeezenet.h says how to use it.

   In this order: checksum; zlib; JSON; the networks of the project as a list of steps; the memory of a network;
   decoding of tensors; resizing; convolution and pooling; the public functions; and, with SQZ_MAIN defined, a command:

       cc -O3 -march=native -DSQZ_MAIN squeezenet.c -o squeezenet -lm
       ./squeezenet small.sqz picture.ppm

   Everything in an archive may be hostile: each number is checked against its limit before it is used, all loops are
   bounded by numbers that were checked, and the first fault ends the reading. Maps lie in memory as (height, width,
   channels), so that the innermost loops run over channels, which compilers turn into vector instructions. */

#include "squeezenet.h"

#include <math.h>
#include <string.h>

#define MAX_ARCHIVE ((size_t)1 << 29)
#define MAX_MEMORY ((uint64_t)1 << 30)

enum {
    MAX_HEADER = 8 << 20,
    MAX_TENSORS = 1 << 14,
    MAX_DIMS = 8,
    MAX_NAME = 200,
    MAX_CODEBOOK = 1 << 12,
    MAX_CLASSES = 1 << 16,
    MAX_CLASS_NAME = 4096, /* characters */
    MAX_CROP = 1024,       /* px */
    N_HEAD = 52,           /* bytes before the header */
    MAX_LAYERS = 36,
    MAX_STEPS = 48,
    MAX_NORM = 512         /* channels of a batch normalisation */
};

#define MAX_TOTAL ((int64_t)1 << 28)  /* values of all tensors */
#define MAX_VALUES ((int64_t)1 << 27) /* of one */
#define LARGEST ((int64_t)1 << 30)    /* number in the header */

#define BN_EPS 2e-5

/* The convolution computes TILE pixels by BLOCK channels at a time, in registers: TILE * BLOCK sums, as many as the
   processor's vector registers hold beside the inputs of the pixels and a row of weights. Weights lie in memory as the loops read them. */
enum { BLOCK = 16 };
#if defined(__AVX512F__)
enum { TILE = 12 };
#elif defined(__aarch64__)
enum { TILE = 6 };
#elif defined(__AVX__)
enum { TILE = 4 };
#else
enum { TILE = 3 };
#endif
/* Inputs of a tile lie in rows of CHUNK, at a distance that is known when compiling, so that the addresses of all
   pixels are constant offsets of one pointer. The 16 keep rows from falling onto the same lines of the cache. */
enum { CHUNK = 256, ROW = CHUNK + 16 };

#if defined(__GNUC__) && !defined(__clang__) && defined(__AVX512F__)
#define WIDE __attribute__((target("prefer-vector-width=512"))) /* GCC takes 256 bits of its own accord */
#else
#define WIDE
#endif

static int least(int a, int b) { return a < b ? a : b; }
static int most(int a, int b) { return a > b ? a : b; }

/* ---- SHA-256 (FIPS 180-4) ---- */

static const uint32_t SHA_K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t h[8], const uint8_t *p) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(s, h, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t e = s[4], a = s[0];
        uint32_t x = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + SHA_K[i] + w[i];
        uint32_t y = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += x;
        s[0] = x + y;
    }
    for (int i = 0; i < 8; i++)
        h[i] += s[i];
}

static void sha256(const uint8_t *data, size_t n, uint8_t digest[32]) {
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t last[128] = {0};
    size_t rest = n % 64, n_last = rest < 56 ? 64 : 128;
    for (size_t i = 0; i + 64 <= n; i += 64)
        sha256_block(h, data + i);
    if (rest)
        memcpy(last, data + (n - rest), rest);
    last[rest] = 0x80;
    for (int i = 0; i < 8; i++)
        last[n_last - 1 - i] = (uint8_t)((uint64_t)n * 8 >> 8 * i);
    for (size_t i = 0; i < n_last; i += 64)
        sha256_block(h, last + i);
    for (int i = 0; i < 32; i++)
        digest[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

/* ---- zlib (RFC 1950, 1951), one byte at a time ----

   The header of an archive may unpack to 8 MB, and sqz_memory has no memory to put that into. So it is unpacked as it is
   read, byte by byte, with the 32 KB that back references reach. */

enum { END = -1, NONE = -2 }; /* in place of a byte: there are no more; none was looked at */

struct code {
    uint16_t count[16]; /* of codes of each length */
    uint16_t symbol[288];
};

struct inflate {
    const uint8_t *in;
    size_t n, at;
    uint32_t bits;
    int n_bit;
    int is_last, is_open, is_stored; /* of the block that is being read */
    int is_over;
    int is_bad;
    uint32_t left; /* bytes to copy from the stored block, or of the back reference */
    uint32_t distance;
    uint32_t n_out;
    uint32_t a, b; /* of the Adler-32 */
    struct code lengths, distances;
    uint8_t window[1 << 15];
};

static uint32_t take_bits(struct inflate *z, int n) {
    while (z->n_bit < n) {
        if (z->at == z->n) {
            z->is_bad = 1;
            return 0;
        }
        z->bits |= (uint32_t)z->in[z->at++] << z->n_bit;
        z->n_bit += 8;
    }
    uint32_t value = z->bits & ((1u << n) - 1);
    z->bits >>= n;
    z->n_bit -= n;
    return value;
}

/* A canonical code from the lengths of its words; as zlib does, refuses an incomplete one, except of a single word. */
static int make_code(struct code *code, const uint8_t *length, int n) {
    int left = 1, offset[16];
    memset(code->count, 0, sizeof code->count);
    for (int i = 0; i < n; i++)
        code->count[length[i]]++;
    int n_word = n - code->count[0];
    for (int i = 1; i < 16; i++) {
        left = 2 * left - code->count[i];
        if (left < 0)
            return 0;
    }
    if (left > 0 && (n_word > 1 || code->count[1] != n_word))
        return 0;
    offset[1] = 0;
    for (int i = 1; i < 15; i++)
        offset[i + 1] = offset[i] + code->count[i];
    for (int i = 0; i < n; i++)
        if (length[i])
            code->symbol[offset[length[i]]++] = (uint16_t)i;
    code->count[0] = 0;
    return 1;
}

static int take_symbol(struct inflate *z, const struct code *code) {
    int word = 0, first = 0, index = 0;
    for (int length = 1; length < 16; length++) {
        word |= (int)take_bits(z, 1);
        int count = code->count[length];
        if (word - count < first)
            return code->symbol[index + word - first];
        index += count;
        first = (first + count) << 1;
        word <<= 1;
    }
    z->is_bad = 1;
    return 0;
}

static void begin_block(struct inflate *z) {
    static const uint8_t ORDER[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint8_t length[320] = {0};
    z->is_last = (int)take_bits(z, 1);
    int kind = (int)take_bits(z, 2);
    z->is_stored = kind == 0;
    z->is_open = 1;
    if (kind == 0) {
        z->bits = 0; /* what is left of this byte; never more than seven bits */
        z->n_bit = 0;
        z->left = take_bits(z, 16);
        if ((take_bits(z, 16) ^ 0xffff) != z->left)
            z->is_bad = 1;
    } else if (kind == 1) {
        for (int i = 0; i < 288; i++)
            length[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
        make_code(&z->lengths, length, 288);
        memset(length, 5, 32); /* 30 and 31 do not occur, but complete the code */
        make_code(&z->distances, length, 32);
    } else if (kind == 2) {
        int n_length = (int)take_bits(z, 5) + 257, n_distance = (int)take_bits(z, 5) + 1;
        int n_code = (int)take_bits(z, 4) + 4;
        for (int i = 0; i < n_code; i++)
            length[ORDER[i]] = (uint8_t)take_bits(z, 3);
        if (n_length > 286 || n_distance > 30 || !make_code(&z->lengths, length, 19)) {
            z->is_bad = 1;
            return;
        }
        memset(length, 0, sizeof length);
        for (int i = 0; i < n_length + n_distance && !z->is_bad;) {
            int symbol = take_symbol(z, &z->lengths), times = 1;
            uint8_t value = (uint8_t)symbol;
            if (symbol == 16) {
                value = i ? length[i - 1] : 0;
                z->is_bad |= !i;
                times = 3 + (int)take_bits(z, 2);
            } else if (symbol > 16) {
                value = 0;
                times = symbol == 17 ? 3 + (int)take_bits(z, 3) : 11 + (int)take_bits(z, 7);
            }
            if (i + times > n_length + n_distance) {
                z->is_bad = 1;
                return;
            }
            while (times--)
                length[i++] = value;
        }
        if (z->is_bad || !length[256] || !make_code(&z->lengths, length, n_length) ||
            !make_code(&z->distances, length + n_length, n_distance))
            z->is_bad = 1;
    } else {
        z->is_bad = 1;
    }
}

static void begin_inflate(struct inflate *z, const uint8_t *in, size_t n) {
    memset(z, 0, sizeof *z - sizeof z->window);
    z->in = in;
    z->n = n;
    z->a = 1;
    uint32_t cmf = take_bits(z, 8), flags = take_bits(z, 8);
    if ((cmf & 15) != 8 || cmf >> 4 > 7 || (cmf << 8 | flags) % 31 || flags & 32)
        z->is_bad = 1;
}

static void end_inflate(struct inflate *z) {
    uint32_t sum = 0;
    z->is_over = 1;
    take_bits(z, z->n_bit & 7);
    for (int i = 0; i < 4; i++)
        sum = sum << 8 | take_bits(z, 8);
    if (sum != (z->b << 16 | z->a) || z->at != z->n)
        z->is_bad = 1;
}

static int inflate_byte(struct inflate *z) {
    static const uint16_t BASE[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                      31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const uint16_t FAR[30] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
                                     193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    int byte = NONE;
    while (byte == NONE) {
        if (z->is_bad || z->is_over)
            return END;
        if (!z->is_open) {
            if (z->is_last)
                end_inflate(z);
            else
                begin_block(z);
        } else if (z->is_stored) {
            if (z->left) {
                z->left--;
                byte = (int)take_bits(z, 8);
            } else {
                z->is_open = 0;
            }
        } else if (z->left) {
            z->left--;
            byte = z->window[(z->n_out - z->distance) & 0x7fff];
        } else {
            int symbol = take_symbol(z, &z->lengths);
            if (symbol < 256) {
                byte = symbol;
            } else if (symbol == 256) {
                z->is_open = 0;
            } else if (symbol > 285) {
                z->is_bad = 1;
            } else {
                int i = symbol - 257;
                z->left = BASE[i] + take_bits(z, i < 8 || i == 28 ? 0 : i / 4 - 1);
                int far = take_symbol(z, &z->distances);
                if (far > 29) {
                    z->is_bad = 1;
                    return END;
                }
                z->distance = FAR[far] + take_bits(z, far < 4 ? 0 : far / 2 - 1);
                if (z->distance > z->n_out)
                    z->is_bad = 1;
            }
        }
    }
    if (z->is_bad)
        return END;
    z->window[z->n_out++ & 0x7fff] = (uint8_t)byte;
    z->a = (z->a + (uint32_t)byte) % 65521;
    z->b = (z->b + z->a) % 65521;
    return byte;
}

/* ---- JSON, read as it is unpacked ----

   The metadata are a JSON text in a string of the header: at level 0 bytes are those of the header, at level 1 those of
   that string, unescaped. A fault ends both: from then on there are no more bytes. */

struct text {
    struct inflate z;
    uint32_t left; /* bytes that the header says are still to come */
    int code;
    int utf8, utf8_least; /* continuation bytes that must follow; the least value of the first of them */
    int utf8_most;
    int ahead[2];         /* the byte that was looked at but not taken, by level */
    uint8_t pending[2][4]; /* bytes of a character written as \u...., by level */
    int n_pending[2];
};

static int fault(struct text *t, int code) {
    if (!t->code)
        t->code = code;
    return END;
}

/* Refuses what is not UTF-8, with the ranges of table 3-7 of the Unicode standard. */
static void check_utf8(struct text *t, int byte) {
    if (t->utf8) {
        if (byte < t->utf8_least || byte > t->utf8_most)
            fault(t, SQZ_HEADER);
        t->utf8--;
        t->utf8_least = 0x80;
        t->utf8_most = 0xbf;
    } else if (byte >= 0x80) {
        if (byte < 0xc2 || byte > 0xf4)
            fault(t, SQZ_HEADER);
        t->utf8 = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
        t->utf8_least = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
        t->utf8_most = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
    }
}

static int string_byte(struct text *t, int level);

static int look(struct text *t, int level) {
    if (t->code)
        return END;
    if (t->ahead[level] == NONE) {
        if (level) {
            t->ahead[1] = string_byte(t, 0);
        } else if (!t->left) {
            t->ahead[0] = END;
        } else {
            t->left--;
            t->ahead[0] = inflate_byte(&t->z);
            if (t->ahead[0] == END)
                return fault(t, SQZ_HEADER);
            check_utf8(t, t->ahead[0]);
        }
    }
    return t->code ? END : t->ahead[level];
}

static int take(struct text *t, int level) {
    int byte = look(t, level);
    if (byte != END)
        t->ahead[level] = NONE;
    return byte;
}

static int take_hex(struct text *t, int level) {
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int c = take(t, level);
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0)
            return fault(t, SQZ_HEADER);
        value = value << 4 | digit;
    }
    return value;
}

/* The next byte of a string whose opening quote was taken, END for its closing one. */
static int string_byte(struct text *t, int level) {
    if (t->n_pending[level])
        return t->pending[level][--t->n_pending[level]];
    int c = take(t, level);
    if (c == '"')
        return END;
    if (c < ' ')
        return fault(t, SQZ_HEADER); /* also the end of the text */
    if (c != '\\')
        return c;
    c = take(t, level);
    switch (c) {
    case '"': case '\\': case '/': return c;
    case 'b': return '\b';
    case 'f': return '\f';
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    case 'u': break;
    default: return fault(t, SQZ_HEADER);
    }
    int32_t point = take_hex(t, level);
    if (point >= 0xd800 && point < 0xdc00 && look(t, level) == '\\') {
        take(t, level);
        int low = take(t, level) == 'u' ? take_hex(t, level) : fault(t, SQZ_HEADER);
        /* Python keeps halves of a pair; here they become the replacement character, the escape after one with it. */
        point = low >= 0xdc00 && low < 0xe000 ? 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00) : 0xfffd;
    }
    if (t->code)
        return END;
    if (point >= 0xd800 && point < 0xe000)
        point = 0xfffd;
    if (point < 0x80)
        return point;
    int n = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3; /* bytes that follow the first, kept last first */
    for (int i = 0; i < n; i++)
        t->pending[level][i] = (uint8_t)(0x80 | (point >> 6 * i & 0x3f));
    t->n_pending[level] = n;
    return (n == 1 ? 0xc0 : n == 2 ? 0xe0 : 0xf0) | (int)(point >> 6 * n);
}

static int look_past_space(struct text *t, int level) {
    int c;
    while ((c = look(t, level)) == ' ' || c == '\t' || c == '\n' || c == '\r')
        take(t, level);
    return c;
}

/* Takes this byte, which must be the next one but for spaces. */
static void expect(struct text *t, int level, int c) {
    if (look_past_space(t, level) != c)
        fault(t, SQZ_HEADER);
    else
        take(t, level);
}

/* Whether another item follows, of a list or object whose opening bracket was taken; takes the comma or the bracket. */
static int has_next(struct text *t, int level, int closing, int *n) {
    int c = look_past_space(t, level);
    if (c == closing) {
        take(t, level);
        return 0;
    }
    if ((*n)++)
        expect(t, level, ',');
    return !t->code;
}

/* A string into `to`, cut to its size; returns its full length in bytes. */
static int take_string(struct text *t, int level, char *to, int size) {
    int n = 0, c;
    expect(t, level, '"');
    while (!t->code && (c = string_byte(t, level)) != END) {
        if (n < size - 1)
            to[n] = (char)c;
        n++;
    }
    to[least(n, size - 1)] = 0;
    return n;
}

static void take_key(struct text *t, int level, char *to, int size) {
    take_string(t, level, to, size);
    expect(t, level, ':');
}

/* A number; sets *is_whole if it is written without point and exponent. */
static double take_number(struct text *t, int level, int *is_whole) {
    double value = 0;
    int sign = 1, n = 0, power = 0, exponent = 0, down = 0;
    *is_whole = 1;
    if (look_past_space(t, level) == '-') {
        take(t, level);
        sign = -1;
    }
    int first = look(t, level);
    for (int c; (c = look(t, level)) >= '0' && c <= '9'; n++) {
        value = value * 10 + (take(t, level) - '0');
        if (n && first == '0')
            fault(t, SQZ_HEADER);
    }
    if (!n)
        fault(t, SQZ_HEADER);
    if (look(t, level) == '.') {
        *is_whole = n = 0;
        take(t, level);
        for (int c; (c = look(t, level)) >= '0' && c <= '9'; n++) {
            take(t, level);
            if (n < 17) {
                value = value * 10 + (c - '0');
                power--;
            }
        }
        if (!n)
            fault(t, SQZ_HEADER);
    }
    if ((look(t, level) | 32) == 'e') {
        *is_whole = n = 0;
        take(t, level);
        if (look(t, level) == '-' || look(t, level) == '+')
            down = take(t, level) == '-';
        for (int c; (c = look(t, level)) >= '0' && c <= '9'; n++)
            exponent = least(exponent * 10 + (take(t, level) - '0'), 9999);
        if (!n)
            fault(t, SQZ_HEADER);
    }
    power += down ? -exponent : exponent;
    for (; power > 0 && value < 1e300 && value > 0; power--)
        value *= 10;
    for (; power < 0 && value > 0; power++)
        value /= 10;
    return sign * value;
}

/* A whole number of 0 .. largest. */
static int64_t take_count(struct text *t, int level, int64_t largest, int code) {
    int is_whole;
    double value = take_number(t, level, &is_whole);
    if (!is_whole || !(value >= 0 && value <= (double)largest)) {
        fault(t, code);
        return 0;
    }
    return (int64_t)value;
}

static void take_word(struct text *t, int level, const char *word) {
    for (; *word; word++)
        if (take(t, level) != *word)
            fault(t, SQZ_HEADER);
}

/* Takes null, if it is the next. */
static int is_null(struct text *t, int level) {
    if (look_past_space(t, level) != 'n')
        return 0;
    take_word(t, level, "null");
    return 1;
}

static void skip_value(struct text *t, int level, int depth) {
    char nothing[1];
    int n = 0, ignored, c = look_past_space(t, level);
    if (depth > 16) {
        fault(t, SQZ_HEADER);
    } else if (c == '"') {
        take_string(t, level, nothing, 1);
    } else if (c == '[' || c == '{') {
        take(t, level);
        while (has_next(t, level, c + 2, &n)) { /* both closing brackets stand two after the opening ones */
            if (c == '{')
                take_key(t, level, nothing, 1);
            skip_value(t, level, depth + 1);
        }
    } else if (c == 't') {
        take_word(t, level, "true");
    } else if (c == 'f') {
        take_word(t, level, "false");
    } else if (c == 'n') {
        take_word(t, level, "null");
    } else {
        take_number(t, level, &ignored);
    }
}

/* ---- the networks ---- */

enum { DENSE, CODED, SPARSE, CONSTANT }; /* kinds of a tensor */
enum { CONV, POOL };
enum { PLAIN, NORM_BEFORE, NORM_AFTER }; /* where a convolution's batch normalisation stands, with a ReLU after it */
enum { W, B, GAMMA, BETA, MEAN, VARIANCE, N_PART };
enum { NOTHING = -1, EVEN, ODD, SQUEEZED, N_BUFFER }; /* maps lie in EVEN and ODD by turns */
static const char *const PART[N_PART] = {"W", "b", "gamma", "beta", "avg_mean", "avg_var"};

/* A tensor in the archive. */
struct part {
    int is_there, kind, is_half;
    size_t at, n_byte; /* from the end of the header */
};

/* A convolution with its batch normalisation. A fully connected layer is a convolution as large as its map. */
struct layer {
    char conv[32], norm_name[32]; /* paths, to which "/W" or "/gamma" belong */
    int norm, in, out, ksize, is_linear;
    struct part part[N_PART];
    size_t weights, bias, scale, shift; /* where they lie, in floats */
};

/* One convolution or pooling between maps. */
struct step {
    int kind, layer;
    int from, to, add;       /* buffers; add: what is added after the ReLU */
    int height, width, channels; /* of `from` */
    int out_height, out_width;
    int ksize, stride, pad;
    int out_channels, offset; /* of the map `to`, and where among them the results begin */
    int relu;
    int is_last; /* its mean over all pixels is the network's answer; `to` is not written */
};

struct view { /* trainer/data/preprocessing.py */
    int is_known, is_squash, is_linear, is_bgr, has_mean;
    int side, crop;
    float mean[3], std[3];
};

struct sqz_network {
    /* from the header */
    char name[48];
    int n_class, has_names, n_tensor;
    size_t n_name_byte; /* of all class names, each with its final 0 */
    struct view view;
    /* the plan */
    int code, n_layer, n_step;
    int height, width; /* of the map that the plan has come to */
    struct layer layer[MAX_LAYERS];
    struct step step[MAX_STEPS];
    size_t buffer_size[N_BUFFER], pack_size; /* floats */
    /* the memory */
    int is_open;
    uint32_t *name_at;
    char *names;
    float *floats;
    size_t n_weight; /* floats of all layers, first of all `floats` */
    float *logits, *pack, *buffer[N_BUFFER];
    struct decoding *decoding; /* these two share their places with the buffers */
    struct resizing *resizing;
};

static void join(char *to, int size, const char *a, const char *b) {
    int n = 0;
    for (; *a && n < size - 1; a++)
        to[n++] = *a;
    for (; *b && n < size - 1; b++)
        to[n++] = *b;
    to[n] = 0;
}

static void need_map(sqz_network *net, int buffer, int height, int width, int channels) {
    size_t n = (size_t)height * (size_t)width * (size_t)channels;
    if (buffer != NOTHING && n > net->buffer_size[buffer])
        net->buffer_size[buffer] = n;
}

/* Appends a convolution of the map the plan has come to; returns its step, to be refined. */
static struct step *add_conv(sqz_network *net, const char *conv, const char *norm_name, int norm, int from, int in, int to,
                             int out, int ksize, int stride, int pad) {
    struct layer *layer = &net->layer[net->n_layer];
    struct step *step = &net->step[net->n_step++];
    join(layer->conv, sizeof layer->conv, conv, "");
    join(layer->norm_name, sizeof layer->norm_name, norm_name, "");
    layer->norm = norm;
    layer->in = in;
    layer->out = out;
    layer->ksize = ksize;
    step->kind = CONV;
    step->layer = net->n_layer++;
    step->from = from;
    step->to = to;
    step->add = NOTHING;
    step->height = net->height;
    step->width = net->width;
    step->channels = in;
    step->ksize = ksize;
    step->stride = stride;
    step->pad = pad;
    if (net->height + 2 * pad < ksize || net->width + 2 * pad < ksize)
        net->code = SQZ_NO_MAP;
    net->height = (net->height + 2 * pad - ksize) / stride + 1;
    net->width = (net->width + 2 * pad - ksize) / stride + 1;
    step->out_height = net->height;
    step->out_width = net->width;
    step->out_channels = out;
    need_map(net, from, step->height, step->width, in);
    size_t n_chunk = ((size_t)ksize * (size_t)ksize * (size_t)in + CHUNK - 1) / CHUNK;
    if (n_chunk * TILE * ROW > net->pack_size)
        net->pack_size = n_chunk * TILE * ROW;
    return step;
}

/* Appends a max pool in ceil mode, of stride 2. */
static void add_pool(sqz_network *net, int from, int to, int channels, int ksize, int pad) {
    struct step *step = &net->step[net->n_step++];
    step->kind = POOL;
    step->from = from;
    step->to = to;
    step->height = net->height;
    step->width = net->width;
    step->channels = step->out_channels = channels;
    step->ksize = ksize;
    step->stride = 2;
    step->pad = pad;
    if (net->height + 2 * pad < ksize - 1) /* the first window must reach the map */
        net->code = SQZ_NO_MAP;
    net->height = (net->height + 2 * pad - ksize + 1) / 2 + 1;
    net->width = (net->width + 2 * pad - ksize + 1) / 2 + 1;
    step->out_height = net->height;
    step->out_width = net->width;
    need_map(net, from, step->height, step->width, channels);
    need_map(net, to, net->height, net->width, channels);
}

struct version {
    const char *name;
    int is_experiment; /* BN-ReLU-Conv, simple bypass; else as published */
    int channels, ksize, pad;
    const char *pooled; /* the layers that a max pool follows, conv1 as 1 */
    int pool_pad, conv10_pad;
};

static const struct version VERSIONS[] = {
    {"squeezenet", 1, 96, 7, 2, "148", 1, 0},
    {"squeezenet_v1.0", 0, 96, 7, 0, "148", 0, 1},
    {"squeezenet_v1.1", 0, 64, 3, 0, "135", 0, 0},
};

/* squeezed channels of fire2 .. fire9, and those of each half when expanded */
static const int FIRES[8][2] = {{16, 64}, {16, 64}, {32, 128}, {32, 128}, {48, 192}, {48, 192}, {64, 256}, {64, 256}};

enum { NO_BYPASS, SIMPLE, COMPLEX };

static void plan_squeezenet(sqz_network *net, const struct version *version, int bypass, int has_norm) {
    int is_experiment = version->is_experiment;
    int norm = is_experiment ? NORM_BEFORE : has_norm ? NORM_AFTER : PLAIN;
    int at = EVEN, channels = version->channels;
    /* The picture lies in ODD, so that conv1 leaves the largest map in EVEN. */
    struct step *step = add_conv(net, "conv1", "conv1_bn", is_experiment ? PLAIN : norm, ODD, 3, EVEN, channels,
                                 version->ksize, 2, version->pad);
    step->relu = !is_experiment;
    need_map(net, EVEN, net->height, net->width, channels);
    for (int fire = 1; fire < 10; fire++) {
        if (fire > 1) {
            char name[8] = "fire0", path[3][32], norm_path[3][32];
            static const char *const LAYER[3] = {"/squeeze1x1", "/expand1x1", "/expand3x3"};
            int squeezed = FIRES[fire - 2][0], half = FIRES[fire - 2][1], x = at, y = EVEN + ODD - at;
            name[4] = (char)('0' + fire);
            for (int i = 0; i < 3; i++) {
                char whole[32];
                join(whole, sizeof whole, name, LAYER[i]);
                join(path[i], sizeof path[i], whole, is_experiment ? "/conv" : "");
                join(norm_path[i], sizeof norm_path[i], whole, is_experiment ? "/bn" : "_bn");
            }
            add_conv(net, path[0], norm_path[0], norm, x, channels, SQUEEZED, squeezed, 1, 1, 0)->relu = !is_experiment;
            for (int i = 1; i < 3; i++) {
                step = add_conv(net, path[i], norm_path[i], norm, SQUEEZED, squeezed, y, half, i == 1 ? 1 : 3, 1, i - 1);
                step->relu = !is_experiment;
                step->out_channels = 2 * half;
                step->offset = (i - 1) * half;
                if (bypass != NO_BYPASS && channels == 2 * half)
                    step->add = x;
            }
            if (bypass == COMPLEX && channels != 2 * half) {
                join(path[0], sizeof path[0], name, "/bypass1x1");
                add_conv(net, path[0], "", PLAIN, x, channels, y, 2 * half, 1, 1, 0)->add = y;
            }
            channels = 2 * half;
            at = y;
            need_map(net, at, net->height, net->width, channels);
        }
        if (strchr(version->pooled, '0' + fire)) {
            add_pool(net, at, EVEN + ODD - at, channels, 3, version->pool_pad);
            at = EVEN + ODD - at;
        }
    }
    step = add_conv(net, is_experiment ? "conv10/conv" : "conv10", "conv10/bn", is_experiment ? norm : PLAIN, at, channels,
                    NOTHING, net->n_class, 1, 1, version->conv10_pad);
    step->relu = !is_experiment;
    step->is_last = 1;
}

static void plan_vgg(sqz_network *net) {
    static const int STAGES[5][2] = {{2, 64}, {2, 128}, {3, 256}, {3, 512}, {3, 512}}; /* convolutions, their channels */
    int at = ODD, channels = 3;
    struct step *step;
    for (int stage = 0; stage < 5; stage++) {
        for (int i = 0; i < STAGES[stage][0]; i++) {
            char name[16] = "conv0_0", path[32], norm_path[32];
            name[4] = (char)('1' + stage);
            name[6] = (char)('1' + i);
            join(path, sizeof path, name, "/conv");
            join(norm_path, sizeof norm_path, name, "/bn");
            step = add_conv(net, path, norm_path, NORM_AFTER, at, channels, EVEN + ODD - at, STAGES[stage][1], 3, 1, 1);
            step->relu = 1;
            channels = STAGES[stage][1];
            at = EVEN + ODD - at;
            need_map(net, at, net->height, net->width, channels);
        }
        add_pool(net, at, EVEN + ODD - at, channels, 2, 0);
        at = EVEN + ODD - at;
    }
    step = add_conv(net, "fc1", "bn1", NORM_AFTER, at, channels, SQUEEZED, 512, net->height, 1, 0);
    step->relu = 1;
    add_conv(net, "fc2", "", PLAIN, SQUEEZED, 512, NOTHING, net->n_class, 1, 1, 0)->is_last = 1;
    net->layer[net->n_layer - 2].is_linear = net->layer[net->n_layer - 1].is_linear = 1;
}

/* Whether the text is this prefix and one of the variants' endings; tells which. */
static int is_variant(const char *name, const char *prefix, int *bypass, int *has_norm) {
    static const char *const BYPASS[3] = {"", "_simple", "_complex"};
    for (*bypass = 0; *bypass < 3; ++*bypass)
        for (*has_norm = 0; *has_norm < 2; ++*has_norm) {
            char whole[48], variant[48];
            join(variant, sizeof variant, prefix, BYPASS[*bypass]);
            join(whole, sizeof whole, variant, *has_norm ? "_bn" : "");
            if (!strcmp(name, whole))
                return 1;
        }
    return 0;
}

/* The steps and the sizes of what lies between them, from the network's name, n_class and crop. */
static int make_plan(sqz_network *net) {
    int is_planned = 0;
    net->height = net->width = net->view.crop;
    if (!strcmp(net->name, "alexnet"))
        return SQZ_ALEXNET;
    if (!strcmp(net->name, "vgg_bn")) {
        plan_vgg(net);
        is_planned = 1;
    }
    for (size_t i = 0; i < sizeof VERSIONS / sizeof *VERSIONS && !is_planned; i++) {
        int bypass, has_norm;
        if (is_variant(net->name, VERSIONS[i].name, &bypass, &has_norm)) {
            if (VERSIONS[i].is_experiment && (bypass || has_norm))
                return SQZ_NETWORK;
            plan_squeezenet(net, &VERSIONS[i], VERSIONS[i].is_experiment ? SIMPLE : bypass, has_norm);
            is_planned = 1;
        }
    }
    return is_planned ? net->code : SQZ_NETWORK;
}

/* ---- the header ---- */

/* What is read of the header: first the metadata, then, for the network that these name, tensors and class names. */
struct reading {
    struct text text;
    sqz_network *net;
    int is_second;
    size_t n_body, at; /* bytes of all tensors; where the next one begins */
    int64_t n_value;
};

static int is_word(const char *const *words, const char *word) {
    for (int i = 0; words[i]; i++)
        if (!strcmp(words[i], word))
            return i;
    return -1;
}

static void take_colours(struct text *t, float colours[3]) {
    int n = 0, is_whole;
    expect(t, 1, '[');
    while (has_next(t, 1, ']', &n)) {
        double value = take_number(t, 1, &is_whole);
        if (n > 3 || !(value > -1e6 && value < 1e6))
            fault(t, SQZ_PREPROCESSING);
        else
            colours[n - 1] = (float)value;
    }
    if (n != 3)
        fault(t, SQZ_PREPROCESSING);
}

static void take_preprocessing(struct text *t, struct view *view) {
    static const char *const KEYS[] = {"name", "resize", "side", "crop", "filter", "order", "mean", "std", NULL};
    static const char *const CHOICES[3][3] = {{"short", "squash", NULL}, {"bilinear", "linear", NULL}, {"RGB", "BGR", NULL}};
    int n = 0, seen = 0, choice[3] = {-1, 0, 0};
    memset(view, 0, sizeof *view);
    view->is_known = 1;
    view->std[0] = view->std[1] = view->std[2] = 1;
    expect(t, 1, '{');
    while (has_next(t, 1, '}', &n)) {
        char word[16];
        take_key(t, 1, word, sizeof word);
        int key = is_word(KEYS, word);
        if (key < 0 || seen & 1 << key) {
            fault(t, SQZ_PREPROCESSING);
            return;
        }
        seen |= 1 << key;
        if (key == 0) {
            take_string(t, 1, word, sizeof word);
        } else if (key == 1 || key == 4 || key == 5) {
            int i = key == 1 ? 0 : key - 3;
            take_string(t, 1, word, sizeof word);
            choice[i] = is_word(CHOICES[i], word);
            if (choice[i] < 0)
                fault(t, SQZ_PREPROCESSING);
        } else if (key == 2) {
            view->side = (int)take_count(t, 1, MAX_CROP, SQZ_PREPROCESSING);
        } else if (key == 3) {
            view->crop = (int)take_count(t, 1, MAX_CROP, SQZ_PREPROCESSING);
        } else if (key == 7) {
            take_colours(t, view->std);
        } else if (!is_null(t, 1)) {
            take_colours(t, view->mean);
            view->has_mean = 1;
        }
    }
    view->is_squash = choice[0];
    view->is_linear = choice[1];
    view->is_bgr = choice[2];
    if ((seen & 15) != 15 || view->crop < 1 || view->crop > view->side)
        fault(t, SQZ_PREPROCESSING);
    for (int i = 0; i < 3; i++)
        if (!(view->std[i] > 1e-6f))
            fault(t, SQZ_PREPROCESSING);
}

/* The names of classes, with their number and bytes when read first, into the memory of the network when second. */
static int take_classes(struct reading *r) {
    struct text *t = &r->text;
    sqz_network *net = r->net;
    size_t at = 0;
    int n = 0;
    expect(t, 1, '[');
    while (has_next(t, 1, ']', &n)) {
        int c, n_character = 0;
        if (n > MAX_CLASSES)
            fault(t, SQZ_METADATA);
        else if (r->is_second)
            net->name_at[n - 1] = (uint32_t)at;
        expect(t, 1, '"');
        while (!t->code && (c = string_byte(t, 1)) != END) {
            n_character += (c & 0xc0) != 0x80;
            if (n_character > MAX_CLASS_NAME)
                fault(t, SQZ_METADATA);
            else if (r->is_second)
                net->names[at] = (char)c;
            at++;
        }
        if (!t->code && r->is_second)
            net->names[at] = 0;
        at++;
    }
    net->n_name_byte = at;
    return n;
}

static void take_metadata(struct reading *r) {
    static const char *const KEYS[] = {"network", "n_class", "preprocessing", "classes", NULL};
    struct text *t = &r->text;
    sqz_network *net = r->net;
    int n = 0, seen = 0, n_name = -1;
    expect(t, 0, '"');
    t->ahead[1] = NONE;
    expect(t, 1, '{');
    while (has_next(t, 1, '}', &n)) {
        char word[16];
        take_key(t, 1, word, sizeof word);
        int key = is_word(KEYS, word);
        if (key >= 0) {
            if (seen & 1 << key)
                fault(t, SQZ_HEADER);
            seen |= 1 << key;
        }
        if (key < 0)
            skip_value(t, 1, 0);
        else if (is_null(t, 1))
            continue;
        else if (key == 0 && r->is_second)
            skip_value(t, 1, 0);
        else if (key == 0 && take_string(t, 1, net->name, sizeof net->name) >= (int)sizeof net->name)
            fault(t, SQZ_NETWORK);
        else if (key == 1)
            net->n_class = (int)take_count(t, 1, MAX_CLASSES, SQZ_METADATA);
        else if (key == 2)
            take_preprocessing(t, &net->view);
        else if (key == 3)
            n_name = take_classes(r);
    }
    if (look_past_space(t, 1) != END)
        fault(t, SQZ_HEADER); /* something follows the metadata in their string */
    if (net->name[0] == 0 || net->n_class < 1 || (n_name >= 0 && n_name != net->n_class))
        fault(t, SQZ_METADATA);
    if (!net->view.is_known)
        fault(t, SQZ_PREPROCESSING);
    net->has_names = n_name >= 0;
}

static int is_path(const char *path, const char *layer, const char *part) {
    size_t n = strlen(layer);
    return !strncmp(path, layer, n) && path[n] == '/' && !strcmp(path + n + 1, part);
}

/* The place in the network of a tensor that the header lists. */
static void place_tensor(struct reading *r, const char *path, int n_dim, const int64_t *shape, const struct part *part) {
    sqz_network *net = r->net;
    for (int l = 0; l < net->n_layer; l++) {
        struct layer *layer = &net->layer[l];
        int n_part = layer->norm == PLAIN ? 2 : N_PART, channels = layer->norm == NORM_BEFORE ? layer->in : layer->out;
        for (int i = 0; i < n_part; i++) {
            if (!is_path(path, i < GAMMA ? layer->conv : layer->norm_name, PART[i]))
                continue;
            int64_t ksize = layer->ksize;
            int is_right;
            if (i == W && layer->is_linear)
                is_right = n_dim == 2 && shape[0] == layer->out && shape[1] == layer->in * ksize * ksize;
            else if (i == W)
                is_right = n_dim == 4 && shape[0] == layer->out && shape[1] == layer->in && shape[2] == ksize && shape[3] == ksize;
            else
                is_right = n_dim == 1 && shape[0] == (i == B ? layer->out : channels);
            if (!is_right)
                fault(&r->text, SQZ_SHAPE);
            else if (layer->part[i].is_there)
                fault(&r->text, SQZ_SURPLUS);
            else
                layer->part[i] = *part;
            return;
        }
        /* The number of batches that were averaged is of no use here. */
        if (n_part == N_PART && is_path(path, layer->norm_name, "N") && n_dim == 0)
            return;
    }
    fault(&r->text, SQZ_SURPLUS);
}

/* [name, kind, shape, dtype, bytes, distinct, nonzero] */
static void take_tensor(struct reading *r) {
    struct text *t = &r->text;
    char name[MAX_NAME + 2], dtype[16];
    struct part part = {0};
    int64_t shape[MAX_DIMS] = {0}, n_value = 1;
    int n_dim = 0;
    expect(t, 0, '[');
    int n = take_string(t, 0, name, sizeof name);
    expect(t, 0, ',');
    part.kind = (int)take_count(t, 0, CONSTANT, SQZ_TENSOR_ROW);
    expect(t, 0, ',');
    expect(t, 0, '[');
    while (has_next(t, 0, ']', &n_dim)) {
        if (n_dim > MAX_DIMS) {
            fault(t, SQZ_TENSOR_ROW);
            return;
        }
        shape[n_dim - 1] = take_count(t, 0, LARGEST, SQZ_TENSOR_ROW);
        n_value *= shape[n_dim - 1]; /* below 2^27 * 2^30 */
        if (n_value > MAX_VALUES) {
            fault(t, SQZ_TENSOR_ROW);
            return;
        }
    }
    expect(t, 0, ',');
    take_string(t, 0, dtype, sizeof dtype);
    part.is_half = !strcmp(dtype, "float16");
    expect(t, 0, ',');
    part.at = r->at;
    part.n_byte = (size_t)take_count(t, 0, LARGEST, SQZ_TENSOR_ROW);
    expect(t, 0, ',');
    take_count(t, 0, MAX_CODEBOOK, SQZ_TENSOR_ROW);
    expect(t, 0, ',');
    take_count(t, 0, n_value, SQZ_TENSOR_ROW);
    expect(t, 0, ']');
    r->n_value += n_value;
    if (n < 1 || n > MAX_NAME || (!part.is_half && strcmp(dtype, "float32")) || r->n_value > MAX_TOTAL ||
        part.n_byte > r->n_body - r->at)
        fault(t, SQZ_TENSOR_ROW);
    if (t->code)
        return;
    r->at += part.n_byte;
    part.is_there = 1;
    if (r->is_second)
        place_tensor(r, name, n_dim, shape, &part);
}

/* Reads the header of an archive whose checksum is right. The first time the metadata; the second time, when the plan
   is made and there is memory, the tensors and the names of classes. */
static int read_header(const uint8_t *archive, size_t n_byte, uint32_t n_packed, uint32_t n_text, sqz_network *net,
                       int is_second) {
    struct reading r;
    struct text *t = &r.text;
    int n = 0, seen = 0;
    memset((char *)&r + sizeof t->z, 0, sizeof r - sizeof t->z);
    begin_inflate(&t->z, archive + N_HEAD, n_packed);
    t->left = n_text;
    t->ahead[0] = t->ahead[1] = NONE;
    r.net = net;
    r.is_second = is_second;
    r.n_body = n_byte - N_HEAD - n_packed;
    expect(t, 0, '{');
    while (has_next(t, 0, '}', &n)) {
        char word[16];
        take_key(t, 0, word, sizeof word);
        int key = !strcmp(word, "metadata") ? 1 : !strcmp(word, "tensors") ? 2 : 0;
        if (seen & key)
            fault(t, SQZ_HEADER);
        seen |= key;
        if (key == 1) {
            take_metadata(&r);
        } else if (key == 2) {
            int n_row = 0;
            expect(t, 0, '[');
            while (has_next(t, 0, ']', &n_row)) {
                if (n_row > MAX_TENSORS)
                    fault(t, SQZ_TENSOR_ROW);
                take_tensor(&r);
            }
            if (!n_row)
                fault(t, SQZ_TENSOR_ROW);
        } else {
            skip_value(t, 0, 0);
        }
    }
    if (look_past_space(t, 0) != END || t->utf8 || (!t->code && inflate_byte(&t->z) != END) || t->z.is_bad || seen != 3)
        fault(t, SQZ_HEADER);
    if (r.at != r.n_body)
        fault(t, SQZ_TENSOR_ROW);
    return t->code;
}

static uint32_t little(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }

/* Checks the archive and plans its network; `net` is empty and is not yet given memory. */
static int examine(const uint8_t *archive, size_t n_byte, sqz_network *net, uint32_t *n_packed, uint32_t *n_text) {
    uint8_t digest[32];
    if (n_byte > MAX_ARCHIVE)
        return SQZ_TOO_LARGE;
    if (n_byte < N_HEAD || memcmp(archive, "\x89SQZ\r\n\x1a\n", 8))
        return SQZ_NOT_AN_ARCHIVE;
    if (little(archive + 8) != 1 && little(archive + 8) != 2)
        return SQZ_VERSION;
    sha256(archive + N_HEAD, n_byte - N_HEAD, digest);
    if (memcmp(digest, archive + 20, 32))
        return SQZ_CHECKSUM;
    *n_packed = little(archive + 12);
    *n_text = little(archive + 16);
    if (*n_packed > n_byte - N_HEAD || *n_text > MAX_HEADER)
        return SQZ_HEADER;
    int code = read_header(archive, n_byte, *n_packed, *n_text, net, 0);
    return code ? code : make_plan(net);
}

/* ---- the memory: the network itself; names; weights; logits; what is shared by decoding, resizing and maps ---- */

enum { MAX_WEIGHT = 2 * SQZ_MAX_SIDE + 8 * MAX_CROP }; /* of all columns of a resized picture, or of one row */

struct resizing {
    int32_t column[MAX_WEIGHT], row[MAX_WEIGHT];
    int32_t first[MAX_CROP];   /* column of the picture from which a column is made */
    int32_t at[MAX_CROP + 1];  /* and where its weights begin */
    uint8_t lines[2][3 * MAX_CROP], cut[3 * MAX_CROP];
    int32_t sums[3 * MAX_CROP];
    int32_t line[2]; /* which lines of the picture these are made from */
};

struct symbols { /* a range coder and its model */
    const uint8_t *words;
    size_t n_word, at;
    uint64_t lower, range, point;
    int n_used;
    uint32_t below[MAX_CODEBOOK + 1];
    uint16_t used[MAX_CODEBOOK];
};

struct decoding {
    struct symbols symbols, places, steps;
    uint64_t count[MAX_CODEBOOK]; /* of the model that is being read */
    uint8_t length[MAX_CODEBOOK];
    float codebook[MAX_CODEBOOK];
    float norm[N_PART][MAX_NORM];
};

static uint64_t place(uint64_t *at, uint64_t n) {
    uint64_t begin = *at;
    *at = begin + ((n + 63) & ~(uint64_t)63);
    return begin;
}

static uint64_t rounded(int n) { return (uint64_t)((n + BLOCK - 1) / BLOCK * BLOCK); }

/* Lays out the memory; with a block, aligned to 64 bytes, sets the pointers into it. Returns its size. */
static uint64_t lay_out(sqz_network *net, uint8_t *block) {
    uint64_t at = 0, n_float = 0, names, name_at, floats, logits, pack, buffer[N_BUFFER];
    place(&at, sizeof *net);
    name_at = place(&at, net->has_names ? 4 * (uint64_t)net->n_class : 0);
    names = place(&at, net->n_name_byte);
    for (int i = 0; i < net->n_layer; i++) {
        struct layer *layer = &net->layer[i];
        uint64_t k = (uint64_t)layer->ksize * (uint64_t)layer->ksize * (uint64_t)layer->in;
        uint64_t n_scale = layer->norm == NORM_BEFORE ? (uint64_t)layer->ksize * (uint64_t)layer->in : 0;
        layer->weights = (size_t)n_float;
        layer->bias = (size_t)(n_float += k * rounded(layer->out));
        layer->scale = (size_t)(n_float += rounded(layer->out));
        layer->shift = (size_t)(n_float += n_scale);
        n_float = (n_float + n_scale + 15) & ~(uint64_t)15;
    }
    net->n_weight = (size_t)n_float;
    floats = place(&at, 4 * n_float);
    logits = place(&at, 4 * rounded(net->n_class));
    /* The picture is resized into ODD, and what this needs besides lies where the other maps do later. */
    uint64_t shared = at, after;
    buffer[ODD] = place(&at, 4 * (uint64_t)net->buffer_size[ODD]);
    after = at;
    pack = place(&at, 4 * (uint64_t)net->pack_size);
    buffer[EVEN] = place(&at, 4 * (uint64_t)net->buffer_size[EVEN]);
    buffer[SQUEEZED] = place(&at, 4 * (uint64_t)net->buffer_size[SQUEEZED]);
    if (at < after + sizeof(struct resizing))
        at = after + sizeof(struct resizing);
    if (at < shared + sizeof(struct decoding))
        at = shared + sizeof(struct decoding);
    if (block) {
        net->name_at = (uint32_t *)(void *)(block + name_at);
        net->names = (char *)(block + names);
        net->floats = (float *)(void *)(block + floats);
        net->logits = (float *)(void *)(block + logits);
        net->pack = (float *)(void *)(block + pack);
        for (int i = 0; i < N_BUFFER; i++)
            net->buffer[i] = (float *)(void *)(block + buffer[i]);
        net->decoding = (struct decoding *)(void *)(block + shared);
        net->resizing = (struct resizing *)(void *)(block + after);
    }
    return at;
}

/* ---- tensors ---- */

/* Bytes of a tensor, read one after the other; the first fault ends the reading. */
struct bytes {
    const uint8_t *data;
    size_t n, at;
    int code;
};

static const uint8_t *take_raw(struct bytes *b, uint64_t n) {
    if (b->code || n > b->n - b->at) {
        b->code = SQZ_CODED;
        return NULL;
    }
    b->at += (size_t)n;
    return b->data + (b->at - n);
}

/* Seven bits a byte, the lowest first. */
static uint64_t take_varint(struct bytes *b, uint64_t largest) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        const uint8_t *byte = shift > 35 ? NULL : take_raw(b, 1);
        if (!byte) {
            b->code = SQZ_CODED;
            return 0;
        }
        value |= (uint64_t)(*byte & 127) << shift;
        if (*byte < 128)
            break;
    }
    if (value > largest) {
        b->code = SQZ_CODED;
        return 0;
    }
    return value;
}

/* The range coder of constriction, RangeDecoder and Categorical(perfect=False), which FORMAT.md names; the model comes
   from how often each of n symbols occurs. To give the same bits on every machine, only divisions, products and sums of
   double numbers are used, each rounded on its own. */
static void begin_symbols(struct bytes *b, struct symbols *s, uint64_t count, const uint64_t *counts, int n) {
    uint64_t n_byte = take_varint(b, b->n), sum = 0;
    const uint8_t *words = take_raw(b, n_byte);
    double whole = 0, below = 0;
    s->n_used = 0;
    for (int i = 0; i < n; i++) {
        if (counts[i])
            s->used[s->n_used++] = (uint16_t)i;
        sum += counts[i];
    }
    if (b->code)
        return;
    if (s->n_used < 2 || !count) { /* nothing has to be said */
        s->used[0] = s->n_used ? s->used[0] : 0;
        s->n_used = 1;
        if (n_byte)
            b->code = SQZ_CODED;
        return;
    }
    for (int i = 0; i < s->n_used; i++)
        whole += (double)counts[s->used[i]] / (double)sum;
    double scale = (double)((1 << 24) - s->n_used) / whole;
    for (int i = 0; i < s->n_used; i++) {
        double product = below * scale;
        s->below[i] = (uint32_t)product + (uint32_t)i; /* the i give each symbol a share of at least 1 */
        below += (double)counts[s->used[i]] / (double)sum;
    }
    s->below[s->n_used] = 1 << 24;
    s->words = words;
    s->n_word = (size_t)n_byte / 4;
    s->at = 0;
    s->lower = s->point = 0;
    s->range = UINT64_MAX;
    if (n_byte % 4)
        b->code = SQZ_CODED;
    for (int i = 0; i < 2; i++) {
        s->point = s->point << 32 | (s->at < s->n_word ? little(words + 4 * s->at) : 0);
        s->at += s->at < s->n_word;
    }
}

static int next_symbol(struct bytes *b, struct symbols *s) {
    if (s->n_used < 2)
        return s->used[0];
    if (b->code)
        return 0;
    uint64_t scale = s->range >> 24, quantile = (s->point - s->lower) / scale; /* range >= 2^32 */
    int low = 0, high = s->n_used; /* below[low] <= quantile < below[high] */
    if (quantile >= 1 << 24) {
        b->code = SQZ_CODED;
        return 0;
    }
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (s->below[middle] <= quantile)
            low = middle;
        else
            high = middle;
    }
    s->lower += scale * s->below[low];
    s->range = scale * (s->below[low + 1] - s->below[low]);
    if (s->range < (uint64_t)1 << 32) {
        s->lower <<= 32;
        s->range <<= 32;
        s->point <<= 32;
        if (s->at < s->n_word)
            s->point |= little(s->words + 4 * s->at++);
    }
    return s->used[low];
}

/* Refuses a block that goes on after its last symbol. */
static void end_symbols(struct bytes *b, const struct symbols *s) {
    if (s->n_used > 1 &&
        (s->at < s->n_word || (s->range != UINT64_MAX && s->point - s->lower >= ((uint64_t)1 << 33) - 1)))
        b->code = SQZ_CODED;
}

/* Begins `count` symbols of 0 .. n - 1, n <= MAX_CODEBOOK, whose rounded counts come first. */
static void begin_counted(struct bytes *b, struct decoding *d, struct symbols *s, uint64_t count, int n) {
    uint64_t *counts = d->count;
    int level = 0, is_any = 0;
    for (int i = 0; i < 241; i++)
        counts[i] = i < 40 ? (uint64_t)1 << (20 - i / 2) : 1;
    begin_symbols(b, &d->steps, (uint64_t)n, counts, 241);
    for (int i = 0; i < n && !b->code; i++) {
        int fold = next_symbol(b, &d->steps);
        level += fold & 1 ? -(fold + 1) / 2 : fold / 2;
        if (level < 0 || level > 120) {
            b->code = SQZ_CODED;
            return;
        }
        counts[i] = level ? (uint64_t)(4 + ((level - 1) & 3)) << ((level - 1) >> 2) : 0; /* in quarters */
        is_any |= level;
    }
    if (!b->code)
        end_symbols(b, &d->steps);
    if (count && !is_any)
        b->code = SQZ_CODED;
    if (!b->code)
        begin_symbols(b, s, count, counts, n);
}

/* Numbers of some bits each, one after the other, the highest bit first. */
struct bit_stream {
    const uint8_t *at;
    uint64_t bits;
    int n_bit;
};

static uint32_t next_bits(struct bit_stream *s, int n) {
    while (s->n_bit < n) {
        s->bits = s->bits << 8 | *s->at++;
        s->n_bit += 8;
    }
    s->n_bit -= n;
    return (uint32_t)(s->bits >> s->n_bit & (((uint64_t)1 << n) - 1));
}

/* Begins a block of exactly so many bits. */
static void begin_bits(struct bytes *b, struct bit_stream *s, uint64_t n_bit) {
    uint64_t n_byte = take_varint(b, b->n);
    s->at = take_raw(b, n_byte);
    s->n_bit = 0;
    s->bits = 0;
    if (n_byte != (n_bit + 7) / 8)
        b->code = SQZ_CODED;
}

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float from_half(uint32_t half) {
    uint32_t sign = (half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
    if (exponent == 0)
        return (sign ? -1.0f : 1.0f) * (float)mantissa / 16777216.0f; /* 2^24 */
    return from_bits(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13);
}

/* A tensor as it is read, one value after the other: no more memory is needed than for its models. */
struct tensor {
    struct bytes b;
    struct decoding *d;
    int kind, is_half, is_raw;
    int n_zero;      /* low bits of the mantissas that are left out */
    uint32_t lowest; /* head */
    struct bit_stream mantissas;
    const uint8_t *raw;
    uint64_t n_value;
};

static void begin_floats(struct tensor *t, uint64_t count) {
    int n_mantissa = t->is_half ? 10 : 23;
    uint32_t largest = t->is_half ? 63 : 511;
    t->n_zero = (int)take_varint(&t->b, (uint64_t)n_mantissa + 1) - 1;
    t->is_raw = t->n_zero < 0;
    if (t->is_raw) {
        t->raw = take_raw(&t->b, count * (t->is_half ? 2 : 4));
        return;
    }
    t->lowest = (uint32_t)take_varint(&t->b, largest);
    int span = (int)take_varint(&t->b, largest - t->lowest);
    if (!t->b.code)
        begin_counted(&t->b, t->d, &t->d->symbols, count, span + 1);
    if (!t->b.code)
        begin_bits(&t->b, &t->mantissas, count * (uint64_t)(n_mantissa - t->n_zero));
}

static float next_float(struct tensor *t) {
    uint32_t bits;
    if (t->is_raw) {
        bits = t->is_half ? t->raw[0] | (uint32_t)t->raw[1] << 8 : little(t->raw);
        t->raw += t->kind == CONSTANT ? 0 : t->is_half ? 2 : 4;
    } else {
        uint32_t head = t->lowest + (uint32_t)next_symbol(&t->b, &t->d->symbols);
        bits = next_bits(&t->mantissas, (t->is_half ? 10 : 23) - t->n_zero) << t->n_zero;
        bits |= t->is_half ? (head & 1) << 15 | head >> 1 << 10 : (head & 1) << 31 | head >> 1 << 23;
    }
    return t->is_half ? from_half(bits) : from_bits(bits);
}

static void begin_codebook(struct tensor *t) {
    struct decoding *d = t->d;
    struct bit_stream bits;
    uint64_t n_bit = 0, number = 0;
    int n = (int)take_varint(&t->b, MAX_CODEBOOK);
    if (n < 1) {
        t->b.code = SQZ_CODED;
        return;
    }
    begin_counted(&t->b, d, &d->symbols, (uint64_t)n, 34);
    for (int i = 0; i < n && !t->b.code; i++) {
        d->length[i] = (uint8_t)next_symbol(&t->b, &d->symbols);
        n_bit += d->length[i] ? d->length[i] - 1 : 0;
    }
    if (!t->b.code)
        end_symbols(&t->b, &d->symbols);
    if (!t->b.code)
        begin_bits(&t->b, &bits, n_bit);
    for (int i = 0; i < n && !t->b.code; i++) {
        int below = d->length[i] - 1; /* bits below the highest one of the step */
        uint64_t step = below < 0 ? 0 : ((uint64_t)1 << below) + (below ? next_bits(&bits, below) : 0);
        number += step + (i > 0);
        if (number > UINT32_MAX) {
            t->b.code = SQZ_CODED;
            return;
        }
        d->codebook[i] = from_bits(number >> 31 ? (uint32_t)number & 0x7fffffff : ~(uint32_t)number);
        if (!(fabsf(d->codebook[i]) <= 3.4028235e38f))
            t->b.code = SQZ_NOT_FINITE;
    }
    if (!t->b.code)
        begin_counted(&t->b, d, &d->symbols, t->n_value, n);
}

static void begin_tensor(struct tensor *t, const uint8_t *body, const struct part *part, struct decoding *d, uint64_t n_value) {
    memset(t, 0, sizeof *t);
    t->b.data = body + part->at;
    t->b.n = part->n_byte;
    t->d = d;
    t->kind = part->kind;
    t->is_half = part->is_half;
    t->n_value = n_value;
    if (t->kind == CODED) {
        begin_codebook(t);
    } else if (t->kind == SPARSE) {
        begin_counted(&t->b, d, &d->places, n_value, 2);
        if (t->b.code)
            return;
        /* How many values are kept is known after all their places: these are decoded twice. */
        uint64_t n_kept = 0;
        struct symbols *ahead = &d->symbols;
        *ahead = d->places;
        for (uint64_t i = 0; i < n_value; i++)
            n_kept += (uint64_t)next_symbol(&t->b, ahead);
        end_symbols(&t->b, ahead);
        begin_floats(t, n_kept);
    } else if (t->kind == CONSTANT) {
        t->is_raw = 1;
        t->raw = take_raw(&t->b, t->is_half ? 2 : 4);
    } else {
        begin_floats(t, n_value);
    }
}

static float next_value(struct tensor *t) {
    float value;
    if (t->b.code)
        return 0;
    if (t->kind == CODED)
        return t->d->codebook[next_symbol(&t->b, &t->d->symbols)];
    if (t->kind == SPARSE && !next_symbol(&t->b, &t->d->places))
        return 0;
    value = next_float(t);
    if (!(fabsf(value) <= 3.4028235e38f) && !t->b.code)
        t->b.code = SQZ_NOT_FINITE;
    return value;
}

static int end_tensor(struct tensor *t) {
    if (!t->b.code && !t->is_raw)
        end_symbols(&t->b, &t->d->symbols);
    if (!t->b.code && t->b.at != t->b.n)
        t->b.code = SQZ_CODED;
    return t->b.code;
}

/* Decodes the tensors of a layer: a batch normalisation before it into a scale and a shift of its inputs, one after it
   into its weights, and the weights as blocks of output channels, (blocks, height, width, in, BLOCK). */
static int decode_layer(sqz_network *net, struct layer *layer, const uint8_t *body) {
    struct decoding *d = net->decoding;
    struct tensor t;
    int ksize = layer->ksize, in = layer->in, out = layer->out, channels = layer->norm == NORM_BEFORE ? in : out;
    size_t n_k = (size_t)ksize * (size_t)ksize * (size_t)in;
    float *w = net->floats + layer->weights, *bias = net->floats + layer->bias;
    float *scale = d->norm[GAMMA], *shift = d->norm[BETA];
    int n_part = layer->norm == PLAIN ? 2 : N_PART, is_after = layer->norm == NORM_AFTER;
    for (int i = 0; i < n_part; i++)
        if (!layer->part[i].is_there)
            return SQZ_MISSING;
    for (int i = GAMMA; i < n_part; i++) {
        begin_tensor(&t, body, &layer->part[i], d, (uint64_t)channels);
        for (int c = 0; c < channels; c++)
            d->norm[i][c] = next_value(&t);
        if (end_tensor(&t))
            return t.b.code;
    }
    for (int c = 0; c < channels && n_part == N_PART; c++) {
        double variance = (double)d->norm[VARIANCE][c] + BN_EPS;
        if (!(variance > 0))
            return SQZ_NOT_FINITE;
        double factor = scale[c] / sqrt(variance);
        scale[c] = (float)factor;
        shift[c] = (float)(shift[c] - d->norm[MEAN][c] * factor);
    }
    if (layer->norm == NORM_BEFORE)
        for (int kx = 0; kx < ksize; kx++) { /* once for each column of a kernel, whose inputs are packed together */
            memcpy(net->floats + layer->scale + kx * in, scale, (size_t)in * sizeof *scale);
            memcpy(net->floats + layer->shift + kx * in, shift, (size_t)in * sizeof *shift);
        }
    begin_tensor(&t, body, &layer->part[B], d, (uint64_t)out);
    for (int o = 0; o < out; o++) {
        float value = next_value(&t);
        bias[o] = is_after ? value * scale[o] + shift[o] : value;
    }
    if (end_tensor(&t))
        return t.b.code;
    begin_tensor(&t, body, &layer->part[W], d, (uint64_t)out * n_k);
    for (int o = 0; o < out; o++) {
        float *block = w + (size_t)(o / BLOCK) * n_k * BLOCK + o % BLOCK, factor = is_after ? scale[o] : 1;
        for (int c = 0; c < in && !t.b.code; c++)
            for (int k = 0; k < ksize * ksize; k++)
                block[((size_t)k * (size_t)in + (size_t)c) * BLOCK] = factor * next_value(&t);
    }
    return end_tensor(&t);
}

/* ---- from a picture to what the network sees ---- */

/* The weights of the pixels that make pixel `i` of `size`, as Pillow computes them for its bilinear filter: a triangle
   over the pixels between the neighbours when enlarging, wide enough to average when shrinking; in 2^-22. */
static int triangle(int length, int size, int i, int is_linear, int32_t *weights, int capacity, int32_t *first) {
    double scale = (double)length / size, width = scale < 1 || is_linear ? 1 : scale;
    double centre = (i + 0.5) * scale, sum = 0;
    int begin = most((int)(centre - width + 0.5), 0), n = least((int)(centre + width + 0.5), length) - begin;
    n = least(n, capacity);
    for (int pass = 0; pass < 2; pass++)
        for (int j = 0; j < n; j++) {
            double away = fabs((j + begin - centre + 0.5) / width), weight = away < 1 ? 1 - away : 0;
            if (pass)
                weights[j] = (int32_t)(0.5 + weight / sum * (1 << 22));
            else
                sum += weight;
        }
    *first = begin;
    return n;
}

/* Where the crop begins in a resized picture: the centre of its central square, each rounded as Python rounds. */
static int cut_from(int length, const struct view *view) {
    int twice = length - view->side, half = twice >> 1;
    return half + (twice & 1 & half) + (view->side - view->crop) / 2;
}

/* Prepares resizing and cutting: what does not change from row to row. */
static void begin_cut(const struct view *view, int width, int new_width, struct resizing *r) {
    int left = cut_from(new_width, view);
    r->at[0] = 0;
    for (int x = 0; x < view->crop; x++)
        r->at[x + 1] = r->at[x] + triangle(width, new_width, left + x, view->is_linear, r->column + r->at[x],
                                           MAX_WEIGHT - r->at[x], &r->first[x]);
    r->line[0] = r->line[1] = -1;
}

/* One row of the resized and cut picture, (crop, 3); like Pillow, columns first, rounded in between. Of the picture's
   lines, resized, only two are kept: enlarged pictures need no more, and those that shrink, each twice at most. */
static void cut_row(const struct view *view, const uint8_t *pixels, int width, int height, int n_channel, int new_height,
                    int y, struct resizing *r, uint8_t *row) {
    int32_t top, *sums = r->sums;
    int n = triangle(height, new_height, cut_from(new_height, view) + y, view->is_linear, r->row, MAX_WEIGHT, &top);
    for (int i = 0; i < 3 * view->crop; i++)
        sums[i] = 1 << 21;
    for (int j = 0; j < n; j++) {
        int from = top + j;
        uint8_t *line = r->lines[from & 1];
        if (r->line[from & 1] != from) {
            const uint8_t *source = pixels + (size_t)from * (size_t)width * (size_t)n_channel;
            r->line[from & 1] = from;
            for (int x = 0; x < view->crop; x++) {
                const uint8_t *p = source + (size_t)r->first[x] * (size_t)n_channel;
                int32_t red = 1 << 21, green = 1 << 21, blue = 1 << 21;
                for (int k = r->at[x]; k < r->at[x + 1]; k++, p += n_channel) {
                    int32_t weight = r->column[k];
                    red += weight * p[0];
                    green += weight * p[1];
                    blue += weight * p[2];
                }
                line[3 * x] = (uint8_t)least(red >> 22, 255);
                line[3 * x + 1] = (uint8_t)least(green >> 22, 255);
                line[3 * x + 2] = (uint8_t)least(blue >> 22, 255);
            }
        }
        int32_t weight = r->row[j];
        for (int i = 0; i < 3 * view->crop; i++)
            sums[i] += weight * line[i];
    }
    for (int i = 0; i < 3 * view->crop; i++)
        row[i] = (uint8_t)least(sums[i] >> 22, 255);
}

/* Resizes and cuts, row by row, into bytes or into floats of 0..255, whichever is wanted. */
static int cut_picture(sqz_network *net, const uint8_t *pixels, int width, int height, int n_channel, uint8_t *bytes, float *floats) {
    const struct view *view = &net->view;
    struct resizing *r = net->resizing;
    int n = 3 * view->crop, new_width = view->side, new_height = view->side;
    if (width < 1 || height < 1 || width > SQZ_MAX_SIDE || height > SQZ_MAX_SIDE)
        return SQZ_PICTURE;
    if (!view->is_squash) {
        new_width = (int)((int64_t)view->side * width / least(width, height));
        new_height = (int)((int64_t)view->side * height / least(width, height));
    }
    begin_cut(view, width, new_width, r);
    for (int y = 0; y < view->crop; y++) {
        uint8_t *row = bytes ? bytes + (size_t)y * (size_t)n : r->cut;
        cut_row(view, pixels, width, height, n_channel, new_height, y, r, row);
        for (int i = 0; i < n && floats; i++)
            floats[(size_t)y * (size_t)n + (size_t)i] = row[i];
    }
    return SQZ_OK;
}

/* Colours of 0..255 into the network's numbers, in place. */
static void normalise(const struct view *view, float *x) {
    size_t n = 3 * (size_t)view->crop * (size_t)view->crop;
    if (view->has_mean) {
        for (size_t i = 0; i < n; i += 3) {
            float red = x[i], blue = x[i + 2];
            x[i] = ((view->is_bgr ? blue : red) - view->mean[0]) / view->std[0];
            x[i + 1] = (x[i + 1] - view->mean[1]) / view->std[1];
            x[i + 2] = ((view->is_bgr ? red : blue) - view->mean[2]) / view->std[2];
        }
        return;
    }
    /* The picture's own mean and deviation: sums of whole numbers, which are exact. */
    double sum = 0, square = 0, count = (double)n;
    for (size_t i = 0; i < n; i++) {
        sum += x[i];
        square += (double)x[i] * x[i];
    }
    double mean = sum / count, variance = (square - sum * mean) / count;
    double deviation = sqrt(variance > 1 / count ? variance : 1 / count); /* the flattest picture that is not flat */
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((x[i] - mean) / deviation);
}

/* ---- convolution and pooling ---- */

/* A convolution is a matrix product: of the inputs of each pixel, in the order of the weights (ky, kx, in), with the
   weights. The inputs of TILE pixels at a time are copied to one place, which stays in the first-level cache while all
   blocks of output channels use it. BN and ReLU before the convolution are done on the way, so that they cost no pass
   over the map; padding, which goes around their results, is zeros. */
static void copy_inputs(const float *restrict from, int n, const float *restrict scale, const float *restrict shift,
                        float *restrict to) {
    if (!scale) {
        memcpy(to, from, (size_t)n * sizeof *to);
        return;
    }
    for (int i = 0; i < n; i++) {
        float value = from[i] * scale[i] + shift[i];
        to[i] = value > 0 ? value : 0;
    }
}

/* The inputs of one output pixel into row `p` of a tile: chunk after chunk, each of TILE rows. */
static void pack_pixel(const struct step *s, const float *map, const float *scale, const float *shift, int y, int x, int p,
                       float *pack) {
    int channels = s->channels, left = x * s->stride - s->pad, k = 0;
    int begin = least(most(-left, 0), s->ksize), end = most(least(s->width - left, s->ksize), begin); /* within the map */
    for (int ky = 0; ky < s->ksize; ky++) {
        int row = y * s->stride - s->pad + ky, is_inside = row >= 0 && row < s->height;
        int edge[3] = {begin * channels, end * channels, s->ksize * channels}; /* zeros, inputs, zeros */
        for (int part = 0, at = 0; part < 3; part++)
            while (at < edge[part]) {
                int n = least(edge[part] - at, CHUNK - k % CHUNK);
                float *to = pack + (size_t)(k / CHUNK) * TILE * ROW + p * ROW + k % CHUNK;
                if (part == 1 && is_inside)
                    copy_inputs(map + ((ptrdiff_t)row * s->width + left) * channels + at, n, scale ? scale + at : NULL,
                                scale ? shift + at : NULL, to);
                else
                    memset(to, 0, (size_t)n * sizeof *to);
                at += n;
                k += n;
            }
    }
}

/* result[p][j] = sum over k of inputs[p][k] * weights[k][j]: nearly all the time of a network is spent here. Each pixel
   has an array of sums of its own: those of one array, [TILE][BLOCK], compilers would leave in memory. The loop over j
   becomes vector instructions. */
#if defined(__AVX512F__)
#define EACH_PIXEL(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#elif defined(__aarch64__)
#define EACH_PIXEL(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#elif defined(__AVX__)
#define EACH_PIXEL(DO) DO(0) DO(1) DO(2) DO(3)
#else
#define EACH_PIXEL(DO) DO(0) DO(1) DO(2)
#endif
#define COUNT_PIXEL(p) +1
#define BEGIN_PIXEL(p) float sums##p[BLOCK] = {0};
#define ADD_PIXEL(p) sums##p[j] += inputs[p * ROW + k] * weights[j];
#define END_PIXEL(p) memcpy(result + p * BLOCK, sums##p, sizeof sums##p);
typedef char tile_has_each_pixel[TILE == 0 EACH_PIXEL(COUNT_PIXEL) ? 1 : -1];

WIDE static void multiply(const float *restrict inputs, const float *restrict weights, int n_k, float *restrict result) {
    EACH_PIXEL(BEGIN_PIXEL)
    for (; n_k > 0; n_k -= CHUNK, inputs += TILE * ROW) {
        int n = least(n_k, CHUNK);
        for (int k = 0; k < n; k++, weights += BLOCK)
            for (int j = 0; j < BLOCK; j++) {
                EACH_PIXEL(ADD_PIXEL)
            }
    }
    EACH_PIXEL(END_PIXEL)
}

/* Bias, ReLU and bypass of a tile's results, n pixels by m channels; to their place in the map, or, of the last
   layer, added to the sums over all pixels. */
static void finish(const struct step *s, const float *restrict result, const float *restrict bias, int n, int m,
                   const float *add, float *to) {
    float floor = s->relu ? 0 : -INFINITY;
    int stride = s->is_last ? 0 : s->out_channels;
    for (int p = 0; p < n; p++)
        for (int j = 0; j < m; j++) {
            float value = result[p * BLOCK + j] + bias[j];
            value = value > floor ? value : floor;
            to[p * stride + j] = add ? value + add[p * stride + j] : value;
        }
}

static void convolve(sqz_network *net, const struct step *s) {
    const struct layer *layer = &net->layer[s->layer];
    const float *weights = net->floats + layer->weights, *bias = net->floats + layer->bias, *map = net->buffer[s->from];
    const float *scale = layer->norm == NORM_BEFORE ? net->floats + layer->scale : NULL, *shift = net->floats + layer->shift;
    int n_k = s->ksize * s->ksize * s->channels, n_pixel = s->out_height * s->out_width;
    float result[TILE * BLOCK];
    for (int pixel = 0; pixel < n_pixel; pixel += TILE) {
        int n = least(n_pixel - pixel, TILE);
        for (int p = 0; p < n; p++)
            pack_pixel(s, map, scale, shift, (pixel + p) / s->out_width, (pixel + p) % s->out_width, p, net->pack);
        for (int o = 0; o < layer->out; o += BLOCK) {
            int m = least(layer->out - o, BLOCK);
            size_t at = (size_t)pixel * (size_t)s->out_channels + (size_t)(s->offset + o);
            multiply(net->pack, weights + (size_t)o * (size_t)n_k, n_k, result);
            if (s->is_last)
                for (int p = 0; p < n; p++)
                    finish(s, result + p * BLOCK, bias + o, 1, m, net->logits + o, net->logits + o);
            else
                finish(s, result, bias + o, n, m, s->add == NOTHING ? NULL : net->buffer[s->add] + at,
                       net->buffer[s->to] + at);
        }
    }
    if (s->is_last)
        for (int i = 0; i < net->n_class; i++)
            net->logits[i] /= (float)n_pixel;
}

static void max_pool(const struct step *s, const float *restrict from, float *restrict to) {
    int channels = s->channels;
    for (int y = 0; y < s->out_height; y++)
        for (int x = 0; x < s->out_width; x++, to += channels) {
            int top = y * s->stride - s->pad, left = x * s->stride - s->pad, is_first = 1;
            for (int row = most(top, 0); row < least(top + s->ksize, s->height); row++)
                for (int column = most(left, 0); column < least(left + s->ksize, s->width); column++, is_first = 0) {
                    const float *pixel = from + ((size_t)row * (size_t)s->width + (size_t)column) * (size_t)channels;
                    if (is_first)
                        memcpy(to, pixel, (size_t)channels * sizeof *to);
                    else
                        for (int c = 0; c < channels; c++)
                            to[c] = pixel[c] > to[c] ? pixel[c] : to[c];
                }
        }
}

/* ---- the public functions ---- */

int sqz_memory(const void *archive, size_t n_byte, size_t *need) {
    sqz_network net;
    uint32_t n_packed, n_text;
    if (!archive || !need)
        return SQZ_ARGUMENT;
    *need = 0;
    memset(&net, 0, sizeof net);
    int code = examine(archive, n_byte, &net, &n_packed, &n_text);
    if (code)
        return code;
    uint64_t n = lay_out(&net, NULL);
    if (n > MAX_MEMORY)
        return SQZ_TOO_LARGE;
    *need = (size_t)n + 63; /* a block may begin anywhere */
    return SQZ_OK;
}

int sqz_open(const void *archive, size_t n_byte, void *block, size_t block_size, sqz_network **opened) {
    sqz_network plan, *net;
    uint32_t n_packed, n_text;
    if (!archive || !block || !opened)
        return SQZ_ARGUMENT;
    *opened = NULL;
    memset(&plan, 0, sizeof plan);
    int code = examine(archive, n_byte, &plan, &n_packed, &n_text);
    if (code)
        return code;
    uint64_t n = lay_out(&plan, NULL);
    if (n > MAX_MEMORY)
        return SQZ_TOO_LARGE;
    if (block_size < (size_t)n + 63)
        return SQZ_MEMORY;
    uint8_t *aligned = (uint8_t *)block + (64 - (uintptr_t)block % 64) % 64;
    lay_out(&plan, aligned);
    net = (sqz_network *)(void *)aligned;
    *net = plan;
    code = read_header(archive, n_byte, n_packed, n_text, net, 1);
    memset(net->floats, 0, net->n_weight * sizeof *net->floats); /* blocks are filled up with channels of zeros */
    memset(net->logits, 0, (size_t)net->n_class * sizeof *net->logits);
    for (int i = 0; i < net->n_layer && !code; i++)
        code = decode_layer(net, &net->layer[i], (const uint8_t *)archive + N_HEAD + n_packed);
    if (code)
        return code;
    net->is_open = 1;
    *opened = net;
    return SQZ_OK;
}

int sqz_cut(sqz_network *net, const uint8_t *pixels, int width, int height, int n_channel, uint8_t *cut) {
    if (!net || !pixels || !cut || (n_channel != 3 && n_channel != 4))
        return SQZ_ARGUMENT;
    if (!net->is_open)
        return SQZ_CLOSED;
    return cut_picture(net, pixels, width, height, n_channel, cut, NULL);
}

int sqz_classify(sqz_network *net, const uint8_t *pixels, int width, int height, int n_channel, float *probabilities) {
    if (!net || !pixels || !probabilities || (n_channel != 3 && n_channel != 4))
        return SQZ_ARGUMENT;
    if (!net->is_open)
        return SQZ_CLOSED;
    int code = cut_picture(net, pixels, width, height, n_channel, NULL, net->buffer[ODD]);
    if (code)
        return code;
    normalise(&net->view, net->buffer[ODD]);
    memset(net->logits, 0, (size_t)net->n_class * sizeof *net->logits);
    for (int i = 0; i < net->n_step; i++) {
        const struct step *step = &net->step[i];
        if (step->kind == CONV)
            convolve(net, step);
        else
            max_pool(step, net->buffer[step->from], net->buffer[step->to]);
    }
    double sum = 0, largest = net->logits[0];
    for (int i = 1; i < net->n_class; i++)
        largest = net->logits[i] > largest ? net->logits[i] : largest;
    for (int i = 0; i < net->n_class; i++)
        sum += exp(net->logits[i] - largest);
    for (int i = 0; i < net->n_class; i++)
        probabilities[i] = (float)(exp(net->logits[i] - largest) / sum);
    return SQZ_OK;
}

int sqz_close(sqz_network *net) {
    if (!net)
        return SQZ_ARGUMENT;
    if (!net->is_open)
        return SQZ_CLOSED;
    net->is_open = 0;
    return SQZ_OK;
}

const float *sqz_logits(const sqz_network *net) { return net->logits; }
int sqz_n_class(const sqz_network *net) { return net->n_class; }
const char *sqz_network_name(const sqz_network *net) { return net->name; }
int sqz_crop(const sqz_network *net) { return net->view.crop; }

const char *sqz_class_name(const sqz_network *net, int index) {
    return net->has_names && index >= 0 && index < net->n_class ? net->names + net->name_at[index] : NULL;
}

const char *sqz_message(int code) {
    static const char *const MESSAGES[SQZ_N_CODE] = {
        "There is no fault.",
        "An argument is NULL, or pixels have neither 3 nor 4 bytes: see squeezenet.h.",
        "The file does not begin as an archive does: expected a .sqz, as `python -m squeeze_net.compression` writes.",
        "The archive has more than 512 MB, or its network needs more than 1 GB of memory: use a smaller one.",
        "The archive is of another version of the format, expected 1.0 or 2.0: write it anew.",
        "The checksum of the archive is wrong, it is cut short or damaged: fetch it again.",
        "The header of the archive cannot be read: write the archive anew.",
        "The archive does not say its network and as many class names as classes: write it with --network.",
        "The archive does not say what images its network expects, or not in the known terms: write it with --preprocess.",
        "The network of the archive is not one that this program computes: expected squeezenet, squeezenet_v1.0, "
        "squeezenet_v1.1, their variants, or vgg_bn.",
        "The archive is of alexnet, whose local response normalisation this program does not compute: use the ONNX file.",
        "The images of the archive leave no map: write it with the size that its network was trained at.",
        "The archive lists a tensor that is out of range: write it anew.",
        "The archive holds a tensor twice, or one that has no place in its network: name the right network.",
        "The archive lacks a tensor of its network: name the right network.",
        "A tensor of the archive has another shape than in its network: name the right network.",
        "The bytes of a tensor are not those of one: write the archive anew.",
        "A tensor holds numbers that are not finite, or a variance below 0: write the archive from sound weights.",
        "The block of memory is smaller than sqz_memory says: give a larger one.",
        "The picture has no pixels, or a side of more than 32,768: give another one.",
        "The network is closed: open it again.",
    };
    return code >= 0 && code < SQZ_N_CODE ? MESSAGES[code] : "There is no such code: see squeezenet.h.";
}

#ifdef SQZ_MAIN

#include <stdio.h>
#include <stdlib.h>

static int stop(const char *name, const char *message) {
    fprintf(stderr, "squeezenet: %s: %s\n", name, message);
    return 2;
}

/* A whole file, to be freed, or NULL. */
static uint8_t *read_file(const char *name, size_t *n) {
    size_t room = 1 << 16;
    uint8_t *data = malloc(room), *larger;
    FILE *file = fopen(name, "rb");
    *n = 0;
    while (file && data) {
        *n += fread(data + *n, 1, room - *n, file);
        if (*n < room)
            break;
        if (!(larger = realloc(data, room *= 2)))
            free(data);
        data = larger;
    }
    if (!file || ferror(file)) {
        free(data);
        data = NULL;
    }
    if (file)
        fclose(file);
    return data;
}

/* The next number of a PPM's header; -1 if there is none. */
static long ppm_number(const uint8_t *data, size_t n, size_t *at) {
    long value = -1;
    while (*at < n && (data[*at] == '#' || strchr(" \t\r\n\v\f", data[*at])))
        if (data[(*at)++] == '#')
            while (*at < n && data[*at] != '\n')
                ++*at;
    for (; *at < n && data[*at] >= '0' && data[*at] <= '9' && value < 1000000; ++*at)
        value = (value < 0 ? 0 : value) * 10 + (data[*at] - '0');
    return value;
}

/* A side in px, as typed; -1 if it is not a number. */
static long side_of(const char *text) {
    char *end;
    long side = strtol(text, &end, 10);
    return *text && !*end ? side : -1;
}

int main(int argc, char **argv) {
    size_t n_archive, n_picture, need, begin = 0;
    sqz_network *net;
    int code;
    if (argc != 3 && argc != 5) {
        fputs("usage: squeezenet FILE.sqz PICTURE.ppm\n       squeezenet FILE.sqz RGB_BYTES WIDTH HEIGHT\n", stderr);
        return 2;
    }
    uint8_t *archive = read_file(argv[1], &n_archive), *picture = read_file(argv[2], &n_picture);
    if (!archive || !picture)
        return stop(argv[archive ? 2 : 1], "The file cannot be read: check its name.");
    long width = argc == 5 ? side_of(argv[3]) : -1, height = argc == 5 ? side_of(argv[4]) : -1;
    if (argc == 3) {
        begin = 2;
        if (n_picture > 2 && picture[0] == 'P' && picture[1] == '6') {
            width = ppm_number(picture, n_picture, &begin);
            height = ppm_number(picture, n_picture, &begin);
        }
        if (width < 0 || height < 0 || ppm_number(picture, n_picture, &begin) != 255)
            return stop(argv[2], "The picture is not a PPM of three bytes a pixel: convert it to P6 with a maximum of 255.");
        begin++; /* one space */
    }
    if (width < 1 || height < 1 || width > SQZ_MAX_SIDE || height > SQZ_MAX_SIDE)
        return stop(argv[2], sqz_message(SQZ_PICTURE));
    if (argc == 5 && n_picture != (size_t)3 * (size_t)width * (size_t)height)
        return stop(argv[2], "The size of the file does not fit: expected RGB, three bytes for each pixel.");
    if (n_picture < begin || (n_picture - begin) / 3 / (size_t)width < (size_t)height)
        return stop(argv[2], "The picture is cut short: expected three bytes for each pixel.");
    if ((code = sqz_memory(archive, n_archive, &need)) != SQZ_OK)
        return stop(argv[1], sqz_message(code));
    void *block = malloc(need);
    if (!block)
        return stop(argv[1], "There is not enough memory for the network: use a smaller one.");
    if ((code = sqz_open(archive, n_archive, block, need, &net)) != SQZ_OK)
        return stop(argv[1], sqz_message(code));
    int n_class = sqz_n_class(net);
    float *probabilities = malloc((size_t)n_class * sizeof *probabilities);
    if (!probabilities)
        return stop(argv[1], "There is not enough memory for the classes: use a smaller network.");
    code = sqz_classify(net, picture + begin, (int)width, (int)height, 3, probabilities);
    if (code != SQZ_OK)
        return stop(argv[2], sqz_message(code));
    for (int rank = 0; rank < 5 && rank < n_class; rank++) {
        int best = 0;
        for (int i = 1; i < n_class; i++)
            best = probabilities[i] > probabilities[best] ? i : best;
        const char *name = sqz_class_name(net, best);
        printf("%6.2f %%  ", 100 * probabilities[best]);
        if (name)
            printf("%s\n", name);
        else
            printf("%d\n", best);
        probabilities[best] = -1;
    }
    sqz_close(net);
    free(probabilities);
    free(block);
    free(picture);
    free(archive);
    return 0;
}

#endif
