/* What a stored matrix W [out, n] is to the kernels, and the inputs that it is multiplied by.

   Rows stand in tiles of 16, one a lane; columns in blocks of 32. A tile is one stream that one thread reads from end to
   end; rows beyond `out` and columns beyond `n` hold zeros. kernels/cpu/plans.py makes the streams:

     F32, F16, BF16  [tile][column][16]; BF16 in pairs of columns, one lane's two values in one word
     INT             a block is `bits` x 64 bytes: a plane of 4 bits (4 x 64), then of 2 (2 x 64), then of 1 (64), each only
                     where the width has it; in a plane's word the byte is the column % 4; 8 bits: 8 x 64 bytes; 3 bits: two
                     codes in the low six bits of each of 3 x 64 bytes, the last eight columns' in the two bits above
     BOOK            as INT of 4 bits, the code is a place in `table`, whose entry 16 is the worth of one in `offset`: low
                     bytes and high bytes of the entries as whole numbers, 32768 added
     BITS            a block is `bits` planes of 1 bit; scale [tile][group][bits][16], offset float [tile][group][16]
     LOOK            the same planes for looking sums up: a block is `bits` x 64 bytes [column / 4 % 4][16], four columns' bits in a
                     nibble, the block's first 16 columns' in the low ones; scale and offset as BITS
     MASK_F16        mask: 32 bits for two columns, bit 2 lane + column % 2; values: the kept ones in that order; starts: bytes
                     before each tile
     TWO_F16         two of every four columns: values half [tile][four columns][16][2], mask: 32 bits a lane [tile][block][16], two
                     bits a value, its column % 4
     MASK_INT        mask: 64 bits for four columns, bit 4 lane + column % 4; values: kept codes, a byte each; or (bits <= 4) of
                     eight columns together, the first four's in the bytes' low nibbles, the others' in the high ones
     LOW_RANK        second x (first x); SUM  first x + second x
     OUTLIERS        values half, mask: columns uint16, starts: int32 [out + 1], added row by row
     COLUMNS         values half [tile][k][16], starts: int32 [k], the columns; groups: k
     TRAIN           each row is a chain of cores (chain.h): values half [tile][a row's values][16], the cores one after the
                     other; starts: int32, how many, their modes, their ranks (one more)

   Scales and zero points [tile][group][16], as `grids` says:

     WHOLE           scale half, zero uint8, or NULL for 2^(bits - 1) everywhere
     REAL            scale half, zero half; INT only, as the next
     LEVELS          scale: 32 bytes [tile][group]: for each row a byte, the scale's code in its low and the zero point's in its
                     high half, and four floats: step and base of the scale, then of the zero point, each base + step code
     FLOATS          scale float, zero float or none; INT and BOOK */

#ifndef PLAN_H
#define PLAN_H

#include "vectors.h"

enum { F32, F16, BF16, INT, BOOK, BITS, MASK_F16, TWO_F16, MASK_INT, LOW_RANK, SUM, OUTLIERS, COLUMNS, TRAIN, LOOK };
enum { WHOLE, REAL, LEVELS, FLOATS };

typedef struct plan plan;
struct plan {
    int64_t out, n;
    int64_t groups, group; /* columns that share a scale: a multiple of 16 */
    int64_t rule;          /* activations: 0 as they are, else int8 with one scale for so many columns (a multiple of 32) */
    int32_t kind, bits, top, grids; /* top: the largest int8 activation */
    int32_t shifted;  /* of a rule: codes run from the token's least to its largest activation, not from -top to top alike. Of codes
                         only INT of 8 bits has it; offset is then float [tile][16], the sum of each row of W */
    double threshold; /* of a rule: activations of that size stay as they are; 0: none do. Of codes only INT of 8 bits has it */
    double fixed;     /* of a rule: what a code is worth in every token; 0: as the largest of its columns says */
    const void *values, *mask, *starts, *scale, *zero, *offset;
    const float *table;
    const int32_t *order; /* column k of the tiles is column order[k] of W; NULL: as they come */
    const plan *first, *second;
};

INLINE int64_t blocks_of(const plan *p) { return (p->n + 31) / 32; }
INLINE int64_t tiles_of(const plan *p) { return (p->out + 15) / 16; }

/* Columns of a prepared input: whole lines of int8 codes, an odd number, so that tokens don't fall into the same places of the cache. */
INLINE int64_t width_of(int64_t n) { return 64 * ((n + 63) / 64 | 1); }

typedef struct {
    int32_t column;
    float x;
} large;

/* Activations of m tokens, ready for a plan: padded with zeros to whole blocks. */
typedef struct {
    const float *x;    /* [m][ld]: as they are, or on their int8 grid */
    const int8_t *q;   /* [digits][rows][ld], or tiled, [digits][rows / 16][ld / 64][16][64]: int8 codes, or three digits to base 256, the highest first */
    const float *sums; /* [m][ld / 16]: of 16 columns of q each, digits put together */
    const float *unit; /* [m][ld / 32]: what a code, or a last digit, is worth */
    int64_t m, rows, ld;
    int digits; /* 1: q holds the codes of a rule; 3: exact activations; 0: it is empty */
    int tiled;  /* for the matrix unit */
    const large *large;  /* [m][ld]: what the rule's threshold keeps out of q; NULL: nothing */
    const int64_t *larges; /* [m]: how many */
    const float *shift;  /* [m]: what each activation is above its code's worth; NULL: nothing */
    const uint8_t *tables; /* of a single token that sums are looked up for: [ld / 16][2 or 4][column / 4 % 4][16], see look_token; else NULL */
} input;

/* One of the threads that work together on a call. */
typedef struct {
    int id, count;
    struct barrier *barrier;
    uint8_t *own, *shared; /* scratch: own_bytes for this thread, the rest for all */
    uint8_t *middle[2];    /* of low-rank products, in turns: nobody reads the one before last any more */
    int turn;
} member;

INLINE void share(const member *me, int64_t n, int64_t *first, int64_t *last)
{
    *first = n * me->id / me->count, *last = n * (me->id + 1) / me->count;
}

void wait_for_all(member *me);
int multiplies_integers(const plan *p);            /* of a single token: those of its rule, or 24-bit ones in three digits */
int looks_up(const plan *p);                       /* whether a single token's sums come from tables */
int takes_matrix(const plan *p, int64_t m);        /* whether the processor's matrix unit multiplies m tokens of it */
int64_t own_bytes(const plan *p);                  /* scratch of one thread for multiply */
int64_t shared_bytes(const plan *p, int64_t m);    /* scratch of all for multiply */
int64_t middle_bytes(const plan *p, int64_t m);    /* of each middle for multiply */
int64_t input_bytes(int64_t n, int64_t m);         /* room for a prepared input */
/* Prepare tokens [first, last) of x [m][ldx] (times `scale` [n] if it is there) for p, into `room` of input_bytes. */
void prepare_input(input *in, const plan *p, const float *x, int64_t ldx, const float *scale, int64_t m, int64_t first, int64_t last, uint8_t *room);
/* y[m][ld] = x W^T; every member calls it and computes its share of the rows. */
void multiply(member *me, const plan *p, const input *in, float *y, int64_t ld);
/* A low-rank product in two parts, for several on one input: their first parts, one wait_for_all, their second parts. */
uint8_t *next_middle(member *me);
void low_rank_first(member *me, const plan *p, const input *in, float *middle);
void low_rank_second(member *me, const plan *p, const float *middle, int64_t m, float *y, int64_t ld);
int64_t panel_bytes(const plan *p);                /* scratch for decode_rows */
/* Rows ids[0..count) of W as floats [count][n]; one thread. panel: panel_bytes. */
void decode_rows(const plan *p, const int64_t *ids, int64_t count, float *into, float *panel);

#endif
