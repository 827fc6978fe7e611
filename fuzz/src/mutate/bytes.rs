//! Damage to bytes, which knows nothing of what they mean.

use crate::{below, pick};
use ancre_passes::random::Random;

/// Cuts, flips, overwrites, inserts, and parts of another file.
pub(super) fn damage(bytes: &[u8], other: &[u8], r: &mut Random) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..1 + below(r, 3) {
        let at = below(r, out.len());
        let end = (at + 1 + below(r, 32)).min(out.len());
        match below(r, 8) {
            0 => out.truncate(at),
            1 => drop(out.drain(at..end)),
            2 => {
                let extra: Vec<u8> = (0..1 + below(r, 12)).map(|_| below(r, 256) as u8).collect();
                out.splice(at..at, extra);
            }
            3 => {
                let from = below(r, other.len());
                let part = &other[from..(from + 1 + below(r, 200)).min(other.len())];
                out.splice(at..at, part.iter().copied());
            }
            4 => {
                let part = out[at..end].to_vec();
                out.splice(at..at, part);
            }
            // A length or a number of ten bytes.
            5 => out.splice(at..end, *pick(r, &[[0xff; 10], [0x80; 10], [0x7f; 10], [0; 10]])).for_each(drop),
            _ => {
                if let Some(byte) = out.get_mut(at) {
                    *byte ^= 1 << below(r, 8);
                }
            }
        }
    }
    out
}
