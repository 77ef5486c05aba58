/* The level of the processor that a library of kernels runs on: 3 or 4 of x86-64 (psABI), 8 of Arm,
   0 where no kernel runs. The operating system has to keep the wide registers too. */
#include <stdint.h>

#if defined(__x86_64__)

static void cpuid(uint32_t leaf, uint32_t part, uint32_t *r) {
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(part));
}

static int all(uint32_t bits, uint32_t wanted) { return (bits & wanted) == wanted; }

int64_t level(void) {
    uint32_t r[4], low, high;
    cpuid(0, 0, r);
    if (r[0] < 7) return 0;
    cpuid(1, 0, r);
    /* SSE3, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, OSXSAVE, AVX, F16C */
    if (!all(r[2], 1u | 1u << 9 | 1u << 12 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 22 | 1u << 23 |
                   1u << 27 | 1u << 28 | 1u << 29)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!all(low, 0x06)) return 0; /* xmm, ymm */
    cpuid(0x80000001u, 0, r);
    if (!all(r[2], 1u | 1u << 5)) return 0; /* LAHF, LZCNT */
    cpuid(7, 0, r);
    if (!all(r[1], 1u << 3 | 1u << 5 | 1u << 8)) return 0; /* BMI1, AVX2, BMI2 */
    /* AVX-512 F, DQ, CD, BW, VL; opmask and zmm */
    if (!all(r[1], 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31) || !all(low, 0xe6)) return 3;
    return 4;
}

#else

int64_t level(void) { return 8; }

#endif
