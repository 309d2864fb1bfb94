/* The types and functions that the stages of a product share. input.c prepares the activations. token.c
   multiplies one token straight from the stored bits. For many tokens panel.c decodes a tile's columns once
   and multiplies them by up to TOKENS tokens. If the processor has a matrix unit, matrix.c multiplies the
   decoded codes. product.c walks a matrix's tiles and chooses between these ways. formats.h decodes each
   format and lists the loops that are compiled for it. */

#ifndef LOOPS_H
#define LOOPS_H

#include "formats.h"

#define TOKENS 128               /* tokens that share one decoding of a tile */
#define PANEL (512 / TILES)      /* columns of a tile that are decoded at once: 32 kB as floats */
#define PANEL_BYTES (16 * PANEL) /* bytes of a panel of codes */
#define DIGITS_UNIT 64           /* columns of exact activations that share a unit: a line of codes */

/* Sums of one digit each, put together, the lower two exactly: over 64 columns they stay below 64 x 255 x
   128 x 257, which is less than 2^30. */
INLINE vf join_digits(const vi *d, const int digits)
{
    if (digits == 1) return vf_of(d[0]);
    return vf_fma(vf_of(d[0]), vf_splat(65536), vf_of(vi_add(vi_shl(d[1], 8), d[2])));
}

/* ---- token.c ---- */

/* 16 rows of a tile times one token. */
typedef vf one_token(const plan *p, int64_t tile, const input *in);
/* The loop for exact activations, or for int8 codes. NULL: this kind multiplies no codes; use the loop for
   exact activations with the values that the codes stand for. */
one_token *token_loop(const plan *p, int int8);
/* Tables [columns / 16][2 or 4][4][16] of one token's codes q, digits `apart` from each other. */
void make_tables(const int8_t *q, int64_t apart, int64_t columns, int digits, uint8_t *tables);

/* ---- panel.c ---- */

/* How far a tile has been decoded. */
typedef struct {
    const plan *p;
    int64_t tile;
    int64_t group, left; /* the next column's group, and how many columns of it are left */
    reader r;
} cursor;

/* The next `blocks` blocks of a tile: as weights float [column][16], or as codes [column / 4][16][4]. */
typedef struct {
    void (*floats)(cursor *c, int64_t blocks, float *panel);
    void (*bytes)(cursor *c, int64_t blocks, uint8_t *panel); /* NULL: not codes of 8 bits or fewer */
} decoder;
const decoder *decoder_of(const plan *p);
cursor begin_tile(const plan *p, int64_t tile);

/* A piece of a product: some tiles, their decoded blocks from `first` on, and m tokens from `token` on. */
typedef struct {
    const plan *p;
    const input *in;
    int64_t tile, first, blocks, token, m;
} job;

/* sum [tiles][TOKENS][16] += panel [tiles][PANEL][16], or as_bytes [tiles][PANEL_BYTES], times the tokens.
   tiles: 1 or TILES. */
void panel_times(const job *j, const float *panel, float *sum, int as_bytes, int tiles);

/* ---- matrix.c ---- */

/* A piece is neighbouring blocks of one panel whose weights share their scales. */
typedef struct { int32_t blocks, group; } piece;

/* How the matrix unit takes the columns: cut into pieces, and each piece into spans, in which the
   activations share their unit as well. */
typedef struct {
    int64_t blocks, span; /* of all columns; of a span */
    int one_unit;         /* each token has a single unit, which its sums are multiplied by at the end */
    float *unit;          /* [block][TOKENS]: the units */
    float *all;           /* [block][TOKENS]: at a piece's first block the sum of its activations */
    piece *piece;         /* [block]: at its first block */
} cut;

int64_t cut_bytes(const plan *p); /* room for a cut */
cut begin_cut(const plan *p, const input *in, float *room);
/* Fill in c for m tokens from `token` on. */
void cut_columns(const plan *p, const input *in, int64_t token, int64_t m, const cut *c);
/* sum [TOKENS][16] += the decoded codes of one tile times the job's tokens. The codes are changed. */
void matrix_times(const job *j, uint8_t *codes, float *sum, const cut *c);

#endif
