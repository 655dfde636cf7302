/* Classify pictures with a compressed network, an archive `.sqz`, in C99 without dependencies.

   One block of memory, whose size sqz_memory tells, holds all that is needed, besides about 50 KB of stack while an
   archive is opened; there is no global state, so that several networks may be open at once, each used by one thread
   at a time.

       size_t need;
       sqz_network *net;
       float probabilities[10];
       if ((code = sqz_memory(archive, n_byte, &need)) == SQZ_OK)
           code = sqz_open(archive, n_byte, block = malloc(need), need, &net);
       if (code == SQZ_OK)
           code = sqz_classify(net, pixels, width, height, 3, probabilities);
       if (code != SQZ_OK)
           puts(sqz_message(code));                                                                                 */

#ifndef SQUEEZENET_H
#define SQUEEZENET_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sqz_network sqz_network;

enum { SQZ_MAX_SIDE = 32768 }; /* px, of a picture */

enum sqz_code {
    SQZ_OK,
    SQZ_ARGUMENT,      /* a pointer is NULL, or pixels have neither 3 nor 4 bytes */
    SQZ_NOT_AN_ARCHIVE,
    SQZ_TOO_LARGE,     /* more than 512 MB, or a network that needs more than 1 GB of memory */
    SQZ_VERSION,
    SQZ_CHECKSUM,
    SQZ_HEADER,        /* does not unpack, or is not JSON of the expected form */
    SQZ_METADATA,      /* the network or its number of classes is not known */
    SQZ_PREPROCESSING, /* the images that the network expects are not known, or out of range */
    SQZ_NETWORK,       /* not a network that this file computes */
    SQZ_ALEXNET,       /* the project's network with local response normalisation, which this file leaves out */
    SQZ_NO_MAP,        /* images too small for the network */
    SQZ_TENSOR_ROW,    /* a tensor's description is out of range */
    SQZ_SURPLUS,       /* a tensor without a place in the network, or twice */
    SQZ_MISSING,       /* a tensor of the network is not there */
    SQZ_SHAPE,
    SQZ_CODED,         /* the bytes of a tensor are not those of one */
    SQZ_NOT_FINITE,    /* a tensor holds infinities or NaN, or a variance below 0 */
    SQZ_MEMORY,        /* the block is smaller than sqz_memory says */
    SQZ_PICTURE,       /* no pixels, or a side above SQZ_MAX_SIDE */
    SQZ_CLOSED,
    SQZ_N_CODE
};

/* Bytes of memory that sqz_open needs for this archive; 0 after a fault. Reads only the header. */
int sqz_memory(const void *archive, size_t n_byte, size_t *need);

/* Checks and decodes an archive into `block`, of any alignment. The archive is not needed afterwards, the block is. */
int sqz_open(const void *archive, size_t n_byte, void *block, size_t block_size, sqz_network **net);

/* The probabilities (n_class) of a picture (height, width, n_channel) of any size, 0..255: RGB, or RGBA, whose fourth
   byte is ignored. Resizes, cuts and normalises it as the archive says. */
int sqz_classify(sqz_network *net, const uint8_t *pixels, int width, int height, int n_channel, float *probabilities);

/* Marks the network as closed; the block is the caller's to free. */
int sqz_close(sqz_network *net);

/* Logits (n_class) of the last picture; those of no picture are 0. */
const float *sqz_logits(const sqz_network *net);

int sqz_n_class(const sqz_network *net);

/* In UTF-8, or NULL if there is no such class or the archive names none. */
const char *sqz_class_name(const sqz_network *net, int index);

/* As in the project's table: "squeezenet_v1.1". */
const char *sqz_network_name(const sqz_network *net);

/* Height and width of what the network sees, px. */
int sqz_crop(const sqz_network *net);

/* What sqz_classify fed to the network last, before colours became the network's numbers, is not kept; this resizes and
   cuts alone: `cut` receives (crop, crop, 3) RGB. */
int sqz_cut(sqz_network *net, const uint8_t *pixels, int width, int height, int n_channel, uint8_t *cut);

/* One English sentence for a code. */
const char *sqz_message(int code);

#ifdef __cplusplus
}
#endif

#endif
