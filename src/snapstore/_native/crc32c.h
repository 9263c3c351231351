/* CRC32C (Castagnoli, RFC 3720): one stream of bytes, and the joining of two.
 *
 * Plain C, no Python. x86-64 and arm64 use their instruction when the processor has it, in three
 * interleaved streams, because one stream waits three cycles for each result; every other processor
 * uses eight tables. All ways give the same numbers, which the tests compare.
 */
#ifndef SNAPSTORE_CRC32C_H
#define SNAPSTORE_CRC32C_H

#ifndef __linux__
#error "snapstore needs Linux: O_TMPFILE, linkat, fallocate and direct I/O have no twin elsewhere"
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CRC32C_POLYNOMIAL 0x82F63B78u /* reflected */
#define CRC32C_LANE 2048              /* bytes per interleaved stream: three lanes stay in L1 */

typedef uint32_t (*crc32c_function)(uint32_t state, const unsigned char *data, size_t size);

static uint32_t crc32c_table[8][256];
static uint32_t crc32c_lane_shift; /* x^(8 * CRC32C_LANE), to join two lanes */
static crc32c_function crc32c_update;
static const char *crc32c_implementation = "none";

/* The product of two polynomials, reflected, modulo the CRC's own. */
static uint32_t crc32c_multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
        if (a & bit)
            product ^= b;
        b = (b & 1) ? (b >> 1) ^ CRC32C_POLYNOMIAL : b >> 1;
    }
    return product;
}

/* x^(8 * size): multiplying a CRC by it is the same as appending `size` zero bytes. */
static uint32_t crc32c_shift(uint64_t size)
{
    uint32_t power = 0x00800000u; /* x^8 */
    uint32_t shift = 0x80000000u; /* 1 */
    for (; size; size >>= 1) {
        if (size & 1)
            shift = crc32c_multiply(shift, power);
        power = crc32c_multiply(power, power);
    }
    return shift;
}

/* CRC32C of A then B, from their own CRCs and the length of B. */
static uint32_t crc32c_join(uint32_t first, uint32_t second, uint64_t second_size)
{
    return crc32c_multiply(first, crc32c_shift(second_size)) ^ second;
}

static uint32_t crc32c_update_portable(uint32_t state, const unsigned char *data, size_t size)
{
    for (; size >= 8; data += 8, size -= 8) {
        uint32_t low = state ^ ((uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 |
                                (uint32_t)data[3] << 24);
        state = crc32c_table[7][low & 255] ^ crc32c_table[6][low >> 8 & 255] ^
                crc32c_table[5][low >> 16 & 255] ^ crc32c_table[4][low >> 24] ^
                crc32c_table[3][data[4]] ^ crc32c_table[2][data[5]] ^ crc32c_table[1][data[6]] ^
                crc32c_table[0][data[7]];
    }
    for (; size; data++, size--)
        state = crc32c_table[0][(state ^ *data) & 255] ^ (state >> 8);
    return state;
}

/* One body for both instruction sets: STEP8 and STEP1 take a state and 8 bytes or 1. */
#define CRC32C_INTERLEAVED(name, target, word, step8, step1)                                             \
    target static uint32_t name(uint32_t state, const unsigned char *data, size_t size)                  \
    {                                                                                                    \
        word a = state;                                                                                  \
        for (; size >= 3 * CRC32C_LANE; data += 3 * CRC32C_LANE, size -= 3 * CRC32C_LANE) {               \
            word b = 0, c = 0;                                                                           \
            for (size_t at = 0; at < CRC32C_LANE; at += 8) {                                             \
                uint64_t x, y, z;                                                                        \
                memcpy(&x, data + at, 8);                                                                \
                memcpy(&y, data + at + CRC32C_LANE, 8);                                                  \
                memcpy(&z, data + at + 2 * CRC32C_LANE, 8);                                              \
                a = step8(a, x);                                                                         \
                b = step8(b, y);                                                                         \
                c = step8(c, z);                                                                         \
            }                                                                                            \
            a = crc32c_multiply((uint32_t)a, crc32c_lane_shift) ^ (uint32_t)b;                           \
            a = crc32c_multiply((uint32_t)a, crc32c_lane_shift) ^ (uint32_t)c;                           \
        }                                                                                                \
        for (; size >= 8; data += 8, size -= 8) {                                                        \
            uint64_t x;                                                                                  \
            memcpy(&x, data, 8);                                                                         \
            a = step8(a, x);                                                                             \
        }                                                                                                \
        for (; size; data++, size--)                                                                     \
            a = step1((uint32_t)a, *data);                                                               \
        return (uint32_t)a;                                                                              \
    }

#if defined(__x86_64__)
#include <nmmintrin.h>
CRC32C_INTERLEAVED(crc32c_update_sse42, __attribute__((target("sse4.2"))), uint64_t, _mm_crc32_u64,
                   _mm_crc32_u8)
#elif defined(__aarch64__) && defined(__AARCH64EL__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
/* By name and not from arm_acle.h, which hides them unless the whole file is built for the CRC. */
#define CRC32C_ARM_STEP8(state, value) crc32c_arm_u64((state), (value))
#define CRC32C_ARM_STEP1(state, value) crc32c_arm_u8((state), (value))
static inline __attribute__((always_inline)) uint32_t crc32c_arm_u64(uint32_t state, uint64_t value)
{
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(state) : "r"(value));
    return state;
}
static inline __attribute__((always_inline)) uint32_t crc32c_arm_u8(uint32_t state, uint8_t value)
{
    __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(state) : "r"(value));
    return state;
}
CRC32C_INTERLEAVED(crc32c_update_armv8, , uint32_t, CRC32C_ARM_STEP8, CRC32C_ARM_STEP1)
#endif

/* Call once, before any other function here and before a second thread. */
static void crc32c_prepare(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t state = byte;
        for (int bit = 0; bit < 8; bit++)
            state = (state & 1) ? (state >> 1) ^ CRC32C_POLYNOMIAL : state >> 1;
        crc32c_table[0][byte] = state;
    }
    for (int table = 1; table < 8; table++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = crc32c_table[table - 1][byte];
            crc32c_table[table][byte] = crc32c_table[0][before & 255] ^ (before >> 8);
        }
    crc32c_lane_shift = crc32c_shift(CRC32C_LANE);
    crc32c_update = crc32c_update_portable;
    crc32c_implementation = "portable";
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2")) {
        crc32c_update = crc32c_update_sse42;
        crc32c_implementation = "sse4.2";
    }
#elif defined(__aarch64__) && defined(__AARCH64EL__)
    if (getauxval(AT_HWCAP) & HWCAP_CRC32) {
        crc32c_update = crc32c_update_armv8;
        crc32c_implementation = "armv8";
    }
#endif
}

/* CRC32C of `data`, going on from `value`, the CRC32C of what came before (0 for nothing). */
static uint32_t crc32c_of(uint32_t value, const void *data, size_t size)
{
    return ~crc32c_update(~value, (const unsigned char *)data, size);
}

static uint32_t crc32c_of_portable(uint32_t value, const void *data, size_t size)
{
    return ~crc32c_update_portable(~value, (const unsigned char *)data, size);
}

#endif
