/* A small pool of helpers. Three rules keep it from losing on a busy machine:
 *
 * - Chunks are claimed one by one, so a helper that the system does not schedule costs nothing: the
 *   caller does its share. The caller and every other helper begin with the first chunk, the rest
 *   with the last, so that a thread finds in its cache what it made in the loop before.
 * - Only a helper that stops in the middle of a chunk makes the caller wait. The wait beyond the
 *   length of a chunk is a stall; for PATIENCE times its length loops then run on the caller alone,
 *   so that stalls take at most 1 / PATIENCE of the time.
 * - Helpers spin for a moment after their last chunk, because the next loop follows within
 *   microseconds, and then sleep until a loop wakes them. They are not woken on the caller's CPU:
 *   where CPUs share no cache, Linux would put them there, behind the caller, for milliseconds.
 */
#include "parallel.h"

#include "clock.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>

enum {
    PATIENCE = 16,
    TOLERATED_NANOSECONDS = 20000, /* less than this is no stall */
    SPIN_NANOSECONDS = 50000,
    PAUSES = 32, /* between two looks at the clock */
    TRIALS = 4,
    TRIED_AGAIN = 256,
    FORGETS = 16,
};

/* The loop in progress in one word, so that it is claimed from by one exchange:
 * number of the loop (26 bits), helpers that may join (8), chunks (10), those that are claimed from
 * the first on (10) and from the last on (10). */
enum { CHUNK_BITS = 10, LARGEST_CHUNKS = (1 << CHUNK_BITS) - 1, LOOP_BITS = 26 };

static uint64_t word_of(uint64_t loop, int32_t helpers, int32_t chunks)
{
    return loop << 38 | (uint64_t)helpers << 30 | (uint64_t)chunks << 2 * CHUNK_BITS;
}

static int32_t helpers_of(uint64_t word) { return word >> 30 & 0xff; }
static int32_t chunks_of(uint64_t word) { return word >> 2 * CHUNK_BITS & LARGEST_CHUNKS; }
static int32_t from_first(uint64_t word) { return word >> CHUNK_BITS & LARGEST_CHUNKS; }
static int32_t from_last(uint64_t word) { return word & LARGEST_CHUNKS; }

static _Atomic uint64_t claim;
static _Atomic(ptq_part) current_part;
static _Atomic(void *) current_context;
static _Atomic int32_t done;
static _Atomic int64_t alone_until;
static _Atomic int32_t sleepers;
static atomic_flag busy = ATOMIC_FLAG_INIT;
static int32_t started; /* helpers; guarded by `busy`, as what follows */
static pthread_t helper_threads[PTQ_MOST_THREADS];
#if defined(__linux__)
static cpu_set_t usable; /* CPUs, by helpers */
static int avoided = -1; /* the CPU of these that they keep away from */
#endif
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;

static void pause_once(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Claim and do chunks until none is left; returns how many. The loop in the word cannot end before
 * its last chunk is claimed and done, so part and context belong to it if the exchange succeeds. */
static int32_t work(int32_t participant)
{
    for (int32_t count = 0;; count++) {
        uint64_t word = atomic_load(&claim);
        bool backwards = participant % 2;
        uint64_t one = backwards ? 1 : 1 << CHUNK_BITS;
        ptq_part part;
        void *context;
        do {
            if (from_first(word) + from_last(word) >= chunks_of(word) ||
                participant > helpers_of(word))
                return count;
            part = atomic_load_explicit(&current_part, memory_order_relaxed);
            context = atomic_load_explicit(&current_context, memory_order_relaxed);
        } while (!atomic_compare_exchange_weak(&claim, &word, word + one));
        int32_t chunks = chunks_of(word);
        int32_t chunk = backwards ? chunks - 1 - from_last(word) : from_first(word);
        part(context, chunk, chunks, participant);
        atomic_fetch_add(&done, 1);
    }
}

static void sleep_until_changed(uint64_t word)
{
    pthread_mutex_lock(&lock);
    atomic_fetch_add(&sleepers, 1);
    while (atomic_load(&claim) == word)
        pthread_cond_wait(&wake, &lock);
    pthread_mutex_unlock(&lock);
}

static void *help(void *participant)
{
    for (;;) {
        work((int32_t)(intptr_t)participant);
        uint64_t word = atomic_load(&claim);
        int64_t end = ptq_nanoseconds() + SPIN_NANOSECONDS;
        while (atomic_load(&claim) == word && ptq_nanoseconds() < end) {
            for (int i = 0; i < PAUSES; i++)
                pause_once();
            sched_yield();
        }
        if (atomic_load(&claim) == word)
            sleep_until_changed(word);
    }
    return NULL;
}

/* A child process has none of its parent's threads. */
static void forget_helpers(void)
{
    started = 0;
    atomic_store(&sleepers, 0);
    atomic_flag_clear(&busy);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&wake, NULL);
}

#if defined(__linux__)
static void note_usable_cpus(void)
{
    avoided = -1;
    if (sched_getaffinity(0, sizeof usable, &usable) != 0)
        CPU_ZERO(&usable);
}

/* Have all helpers woken on other CPUs than the one that this thread is on, if there are any. */
static void keep_away_from_here(void)
{
    int cpu = sched_getcpu();
    if (cpu == avoided || cpu < 0 || CPU_COUNT(&usable) < 2)
        return;
    cpu_set_t others = usable;
    CPU_CLR(cpu, &others);
    for (int32_t i = 0; i < started; i++)
        pthread_setaffinity_np(helper_threads[i], sizeof others, &others);
    avoided = cpu;
}
#else
static void note_usable_cpus(void) {}
static void keep_away_from_here(void) {}
#endif

/* Start helpers that take no signals; returns how many there are now, at most `wanted`. */
static int32_t start_helpers(int32_t wanted)
{
    static bool handles_forks;
    if (!handles_forks)
        handles_forks = pthread_atfork(NULL, NULL, forget_helpers) == 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    if (started == 0)
        note_usable_cpus();
    while (started < wanted &&
           pthread_create(&thread, NULL, help, (void *)(intptr_t)(started + 1)) == 0) {
        pthread_detach(thread);
        helper_threads[started++] = thread;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started < wanted ? started : wanted;
}

static void wake_sleepers(void)
{
    if (atomic_load(&sleepers) == 0)
        return;
    keep_away_from_here();
    pthread_mutex_lock(&lock);
    atomic_store(&sleepers, 0); /* they are on their way; no need to call them again */
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
}

/* Wait for the helpers' last chunks; remember a stall. own: chunks that the caller did since `start`. */
static void join(int32_t chunks, int32_t own, int64_t start)
{
    if (atomic_load(&done) == chunks)
        return;
    int64_t ready = ptq_nanoseconds();
    int64_t expected = (ready - start) / (own > 0 ? own : 1);
    while (atomic_load(&done) != chunks) {
        for (int i = 0; i < PAUSES && atomic_load(&done) != chunks; i++)
            pause_once();
        if (ptq_nanoseconds() - ready > TOLERATED_NANOSECONDS)
            sched_yield();
    }
    int64_t now = ptq_nanoseconds();
    int64_t stall = now - ready - expected;
    if (stall > TOLERATED_NANOSECONDS)
        atomic_store(&alone_until, now + PATIENCE * stall);
}

void ptq_parallel(ptq_part part, void *context, int32_t chunks, int32_t threads)
{
    static uint64_t loops;
    int64_t start = threads > 1 && chunks > 1 ? ptq_nanoseconds() : 0;
    if (start == 0 || start < atomic_load(&alone_until) || atomic_flag_test_and_set(&busy)) {
        part(context, 0, 1, 0);
        return;
    }
    chunks = chunks < LARGEST_CHUNKS ? chunks : LARGEST_CHUNKS;
    int32_t most = threads < PTQ_MOST_THREADS ? threads : PTQ_MOST_THREADS;
    int32_t helpers = start_helpers(most - 1);
    atomic_store(&done, 0);
    atomic_store_explicit(&current_part, part, memory_order_relaxed);
    atomic_store_explicit(&current_context, context, memory_order_relaxed);
    atomic_store(&claim, word_of(++loops & ((1 << LOOP_BITS) - 1), helpers, chunks));
    wake_sleepers();
    join(chunks, work(0), start);
    atomic_flag_clear(&busy);
}

/* The least time of a way, which is slowly forgotten, as other work may come and go. */
static void remember(_Atomic int64_t *least, int64_t taken)
{
    int64_t known = atomic_load_explicit(least, memory_order_relaxed);
    if (known != 0 && taken > known)
        taken = known + (taken - known) / FORGETS;
    atomic_store_explicit(least, taken, memory_order_relaxed);
}

static int32_t chosen_way(ptq_record *record, int32_t threads)
{
    if (atomic_exchange_explicit(&record->threads, threads, memory_order_relaxed) != threads)
        atomic_store_explicit(&record->runs, 0, memory_order_relaxed);
    uint32_t run = atomic_fetch_add_explicit(&record->runs, 1, memory_order_relaxed);
    if (run < PTQ_WAYS * TRIALS)
        return run % PTQ_WAYS;
    int64_t alone = atomic_load_explicit(&record->nanoseconds[PTQ_ALONE], memory_order_relaxed);
    int64_t other = atomic_load_explicit(&record->nanoseconds[PTQ_TOGETHER], memory_order_relaxed);
    return (other < alone) != (run % TRIED_AGAIN == 0);
}

void ptq_parallel_or_alone(ptq_part part, void *context, int32_t chunks, int32_t threads,
                           ptq_record *record)
{
    if (threads <= 1 || chunks <= 1) {
        part(context, 0, 1, 0);
        return;
    }
    int32_t way = chosen_way(record, threads);
    int64_t start = ptq_nanoseconds();
    if (way == PTQ_ALONE)
        part(context, 0, 1, 0);
    else
        ptq_parallel(part, context, chunks, threads);
    remember(&record->nanoseconds[way], ptq_nanoseconds() - start);
}
