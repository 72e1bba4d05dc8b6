//! Which of many bytes end a plain run of a string: `"`, `\` and control characters. A bit for each byte, the lowest
//! for the first.

use wide::u8x16;

/// Of sixteen bytes, each a byte of ones where it does.
#[inline(always)]
fn marked(block: &[u8; 16]) -> u8x16 {
    let bytes = u8x16::new(*block);
    // Flipping one bit puts the quote beside the controls: up to 0x20 are then these alone.
    let flipped = bytes ^ u8x16::splat(0x02);
    let quote_or_control = flipped.min(u8x16::splat(0x20)).simd_eq(flipped);
    quote_or_control | bytes.simd_eq(u8x16::splat(b'\\'))
}

/// Of sixteen bytes.
#[inline(always)]
pub(super) fn ends(block: &[u8; 16]) -> u32 {
    marked(block).to_bitmask()
}

/// Of sixty-four bytes.
#[inline(always)]
pub(super) fn ends_wide(block: &[u8; 64]) -> u64 {
    let (blocks, _) = block.as_chunks::<16>();
    // In a long text nearly all have none: that is one question for all four.
    let any = blocks.iter().fold(u8x16::ZERO, |any, block| any | marked(block));
    if any.to_bitmask() == 0 {
        return 0;
    }
    blocks.iter().rev().fold(0, |found, block| found << 16 | u64::from(ends(block)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_told_at_every_place() {
        for byte in 0..=u8::MAX {
            let expected = u64::from(byte == b'"' || byte == b'\\' || byte < 0x20);
            for place in 0..64 {
                let mut block = [b'a'; 64];
                block[place] = byte;
                assert_eq!(ends_wide(&block), expected << place, "{byte:#x} at {place}");
            }
        }
    }
}
