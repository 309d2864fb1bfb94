/* Threads that work together: OpenMP's team, which is PyTorch's own where both use one library. One call runs
   at a time. The barrier spins briefly, then gives the processor away. */

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "team.h"

#define SPINS 4000

void wait_for_all(member *me)
{
    struct barrier *b = me->barrier;
    if (me->count == 1) return;
    const int turn = atomic_load_explicit(&b->turn, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) == me->count - 1) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&b->turn, turn + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&b->turn, memory_order_acquire) == turn; spins++) {
        if (spins > SPINS) sched_yield();
#if defined(__x86_64__) || defined(__i386__)
        else __builtin_ia32_pause();
#endif
    }
}

static atomic_flag busy = ATOMIC_FLAG_INIT;
static uint8_t *arena;
static int64_t arena_bytes;

uint8_t *team_begin(int64_t bytes)
{
    for (int spins = 0; atomic_flag_test_and_set_explicit(&busy, memory_order_acquire); spins++)
        if (spins > 100) sched_yield();
    if (bytes > arena_bytes) {
        free(arena);
        arena_bytes = (bytes + bytes / 4 + 63) & ~(int64_t)63;
        arena = aligned_alloc(64, arena_bytes);
        if (!arena) arena_bytes = 0;
    }
    if (bytes && !arena) team_end();
    return arena;
}

void team_end(void) { atomic_flag_clear_explicit(&busy, memory_order_release); }
