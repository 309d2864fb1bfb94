/* The form in which the kernels get a stored matrix W [out, n], and the inputs that it is multiplied by.

   Rows stand in tiles of 16, one row in each lane. Columns stand in blocks of 32. A tile is one stream of
   bytes that one thread reads from its beginning to its end. Rows beyond `out` and columns beyond `n` hold
   zeros. kernels/cpu/plans.py makes the streams, and these are their layouts:

     F32, F16, BF16  [tile][column][16]. BF16 has its columns in pairs: one word holds a lane's two values.
     INT             A block is `bits` x 64 bytes, cut into planes. A plane of 4 bits takes 4 x 64 bytes, one
                     of 2 bits 2 x 64, one of 1 bit 64, in this order. A width has the planes that add up to
                     it: 5 bits have a plane of 4 and a plane of 1. Within a plane's word the byte is column
                     % 4. Codes of 8 bits take 8 x 64 bytes. Codes of 3 bits have no planes: the low six bits
                     of each of 3 x 64 bytes hold two codes, and the two bits above hold the codes of the
                     last eight columns.
     BOOK            As INT of 4 bits. A code is a place in `table`. `offset` holds the table's entries as
                     whole numbers plus 32768, first all low bytes and then all high bytes; multiplied by
                     table[16], such a whole number is its entry.
     BITS            A block is `bits` planes of 1 bit. scale [tile][group][bits][16], offset float
                     [tile][group][16].
     LOOK            The same planes, laid out so that sums are looked up: a block is `bits` x 64 bytes
                     [column / 4 % 4][16]. A nibble holds the bits of four columns, the low nibble those of
                     the block's first 16 columns. scale and offset as of BITS.
     MASK_F16        mask: 32 bits for two columns, of which bit 2 lane + column % 2 says whether the
                     weight is kept. values: the kept weights in that order. starts: the bytes before each
                     tile.
     TWO_F16         Two of every four columns are kept: values half [tile][four columns][16][2]. mask: 32
                     bits a lane [tile][block][16], two bits a value, its column % 4.
     MASK_INT        mask: 64 bits for four columns, bit 4 lane + column % 4. values: the kept codes, a
                     byte each. Up to 4 bits, codes of eight columns share bytes: the first four columns'
                     codes are in the low nibbles, the others' in the high ones.
     LOW_RANK        W x = second (first x).
     SUM             W x = first x + second x.
     OUTLIERS        values half and mask, their columns as uint16, row by row. starts: int32 [out + 1].
     COLUMNS         values half [tile][k][16]. starts: int32 [k], which columns they are. groups: k.
     TENSOR_TRAIN    Each row is a chain of cores (chain.h): values half [tile][values of a row][16], one
                     core after the other. starts: int32, the number of cores, then their modes, then
                     their ranks (one more).

   Scales and zero points are [tile][group][16], and `grids` says how they are stored:

     WHOLE           scale half. zero uint8, or NULL: the zero point is 2^(bits - 1) everywhere.
     REAL            scale half, zero half. Only INT has this grid and the next.
     LEVELS          scale: 32 bytes [tile][group]. 16 bytes hold for each row the scale's code in the low
                     half and the zero point's in the high half. Four floats follow: step and base of the
                     scale, then of the zero point. A code stands for base + step code.
     FLOATS          scale float, zero float. INT and BOOK have it; BOOK has no zero points. */

#ifndef PLAN_H
#define PLAN_H

#include "vectors.h"

/* Every kind of matrix, and how it is multiplied. plans.py reads this list and GRIDS from here.

     BY_FLOATS    the weights are floats
     BY_INTEGERS  the weights are codes, and exact activations become integers too, of 24 bits
     BY_ENTRIES   the weights are codes that stand for floats: under a rule they are multiplied as integers,
                  without one as floats
     BY_PARTS     the products of `first` and `second` are combined
     BY_ADDING    there are few weights, and their products are added to y
     BY_CHAINS    the rows are rebuilt first, then multiplied */
#define KINDS(KIND) \
    KIND(F32, BY_FLOATS) \
    KIND(F16, BY_FLOATS) \
    KIND(BF16, BY_FLOATS) \
    KIND(INT, BY_INTEGERS) \
    KIND(BOOK, BY_ENTRIES) \
    KIND(BITS, BY_INTEGERS) \
    KIND(MASK_F16, BY_FLOATS) \
    KIND(TWO_F16, BY_FLOATS) \
    KIND(MASK_INT, BY_INTEGERS) \
    KIND(LOW_RANK, BY_PARTS) \
    KIND(SUM, BY_PARTS) \
    KIND(OUTLIERS, BY_ADDING) \
    KIND(COLUMNS, BY_ADDING) \
    KIND(TENSOR_TRAIN, BY_CHAINS) \
    KIND(LOOK, BY_INTEGERS)
#define GRIDS(GRID) GRID(WHOLE) GRID(REAL) GRID(LEVELS) GRID(FLOATS)

#define NAME_OF(name, ...) name,
#define MULTIPLIED_OF(name, multiplied) multiplied,
enum { KINDS(NAME_OF) };
enum { GRIDS(NAME_OF) };
enum { BY_FLOATS, BY_INTEGERS, BY_ENTRIES, BY_PARTS, BY_ADDING, BY_CHAINS };

typedef struct plan plan;
struct plan {
    int64_t out, n;
    int64_t groups, group; /* group: how many columns share a scale, a multiple of 16 */
    /* How activations are rounded. rule 0: they are not. Else they become int8 codes, and `rule` columns (a
       multiple of 32) share a unit: an activation is its code times the unit. top: the largest code. fixed:
       one unit for all tokens; 0: each unit follows from the largest activation in its columns.
       shifted: codes run from a token's least activation to its largest; else from -top to top, symmetric
       about zero. threshold: activations of this size or larger stay as they are; 0: all are rounded. Among
       the kinds whose weights are codes, only INT of 8 bits takes a shifted rule or a threshold. Under a
       shifted rule, `offset` is the sum of each row of W, float [tile][16]. */
    int64_t rule;
    int32_t kind, bits, top, grids;
    int32_t shifted;
    double threshold, fixed;
    const void *values, *mask, *starts, *scale, *zero, *offset;
    const float *table;
    const int32_t *order; /* column k of the tiles is column order[k] of W; NULL: column k of W */
    const plan *first, *second;
};

INLINE int multiplied(const plan *p)
{
    static const uint8_t of[] = {KINDS(MULTIPLIED_OF)};
    return of[p->kind];
}
INLINE int64_t blocks_of(const plan *p) { return (p->n + 31) / 32; }
INLINE int64_t tiles_of(const plan *p) { return (p->out + 15) / 16; }

/* Columns of a prepared input: whole cache lines of 64 int8 codes. The number of lines is odd, so that
   different tokens don't fall into the same sets of the cache. */
INLINE int64_t width_of(int64_t n) { return 64 * ((n + 63) / 64 | 1); }

/* Activations as they come: x [m][ld], each multiplied by its column's scale [n] if there is one. */
typedef struct {
    const float *x;
    int64_t m, ld;
    const float *scale; /* NULL: none */
} source;

typedef struct {
    int32_t column;
    float x;
} large;

/* Activations of m tokens, ready for a plan: padded with zeros to whole blocks. */
typedef struct {
    const float *x;    /* [m][ld]: as they are, or on their int8 grid */
    const int8_t *q;   /* [digits][rows][ld]: int8 codes, or three digits to base 256, the highest first */
    const float *sums; /* [m][ld / 16]: sums of 16 columns of q each, with the digits put together */
    const float *unit; /* [m][ld / 32]: what a code of 1, or a last digit of 1, stands for */
    int64_t m, rows, ld;
    int digits;            /* 1: q holds the codes of a rule. 3: q holds exact activations. 0: q is empty */
    int tiled;             /* q is laid out for the matrix unit: [digits][rows / 16][ld / 64][16][64] */
    const large *large;    /* [m][ld]: activations that the rule's threshold keeps out of q; NULL: none */
    const int64_t *larges; /* [m]: how many of them */
    const float *shift;    /* [m]: an activation is its code times its unit, plus this; NULL: plus nothing */
    const uint8_t *tables; /* [ld / 16][2 or 4][column / 4 % 4][16]: make_tables; NULL: none */
} input;

/* One of the threads that work together on a call. */
typedef struct {
    int id, count;
    struct barrier *barrier;
    uint8_t *own, *shared; /* scratch: own_bytes for this thread alone, the rest for all */
    uint8_t *middle[2];    /* for low-rank products, used in turns: nobody reads one while it is written */
    int turn;
} member;

INLINE void share(const member *me, int64_t n, int64_t *first, int64_t *last)
{
    *first = n * me->id / me->count, *last = n * (me->id + 1) / me->count;
}

void wait_for_all(member *me);
int multiplies_integers(const plan *p);         /* whether a single exact token becomes 24-bit integers */
int looks_up(const plan *p);                    /* whether a single token's sums come from tables */
int takes_matrix(const plan *p, int64_t m);     /* whether the matrix unit multiplies m tokens of it */
int64_t own_bytes(const plan *p);               /* scratch of one thread for multiply */
int64_t shared_bytes(const plan *p, int64_t m); /* scratch that all threads share for multiply */
int64_t middle_bytes(const plan *p, int64_t m); /* size of each middle for multiply */
int64_t input_bytes(int64_t n, int64_t m);      /* room for a prepared input */
/* Prepare the tokens [first, last) of `from` for p. room: input_bytes. */
void prepare_input(input *in, const plan *p, const source *from, int64_t first, int64_t last, uint8_t *room);
/* y[m][ld] = x W^T. Every member calls it and computes its share of the rows. */
void multiply(member *me, const plan *p, const input *in, float *y, int64_t ld);
/* A low-rank product in two parts. Several products on one input run all their first parts, wait once,
   then run all their second parts. */
uint8_t *next_middle(member *me);
void low_rank_first(member *me, const plan *p, const input *in, float *middle);
void low_rank_second(member *me, const plan *p, const float *middle, int64_t m, float *y, int64_t ld);
int64_t panel_bytes(const plan *p); /* scratch for decode_rows */
/* Rows ids[0..count) of W as floats [count][n], by one thread. panel: panel_bytes. */
void decode_rows(const plan *p, const int64_t *ids, int64_t count, float *into, float *panel);

#endif
