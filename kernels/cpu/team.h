/* One team of threads and its memory; see team.c. */

#ifndef TEAM_H
#define TEAM_H

#include <stdatomic.h>

#include "plan.h"

struct barrier {
    atomic_int arrived;
    char apart[60]; /* the two counters on lines of their own */
    atomic_int turn;
};

/* Wait for the team and get scratch of at least `bytes`, aligned to 64; NULL if there is no memory (then
   don't end). */
uint8_t *team_begin(int64_t bytes);
void team_end(void);

#endif
