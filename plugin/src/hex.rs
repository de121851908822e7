//! Hexadecimal digits, without a branch for each.

/// The 32 hexadecimal digits of a number of 128 bits.
#[inline]
pub fn hex(high: u64, low: u64) -> [u8; 32] {
    let mut digits = [0; 32];
    let parts = [(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32];
    for (eight, part) in digits.chunks_exact_mut(8).zip(parts) {
        eight.copy_from_slice(&eight_digits(part));
    }
    digits
}

/// The eight hexadecimal digits of a number, computed in parallel.
#[inline]
fn eight_digits(number: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // One digit per byte.
    let mut digits = u64::from(number);
    digits = (digits << 16 | digits) & 0x0000_ffff_0000_ffff;
    digits = (digits << 8 | digits) & 0x00ff_00ff_00ff_00ff;
    digits = (digits << 4 | digits) & 0x0f0f_0f0f_0f0f_0f0f;
    // One in each byte above 9; letters are 39 places after the colon that follows 9.
    let letters = (digits + 6 * ONES) >> 4 & ONES;
    (digits + u64::from(b'0') * ONES + 39 * letters).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_number() {
        let (mut high, mut low) = (0_u64, 1_u64);
        for _ in 0..10_000 {
            // A generator of numbers that have nothing in common: Knuth's, of MMIX.
            high = high.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            low = low.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(high | 1);
            assert_eq!(hex(high, low), format!("{high:016x}{low:016x}").as_bytes());
        }
    }
}
