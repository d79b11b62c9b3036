//! Reading and changing headers that stand where the verifier does not follow, word by word through helpers: for
//! rare packets.

use fairlead_common::addr::Addr;
use fairlead_common::checksum::Delta;
use fairlead_common::reason::Reason;

use super::{Frame, Renaming};

/// The two bytes at `at`, which is at least 6.
///
/// # Errors
/// [`Reason::Malformed`] when the frame ends before.
#[inline(always)]
pub fn half(frame: &impl Frame, at: usize) -> Result<u16, Reason> {
    // The eight bytes that end there: the frame may end there too.
    let [word] = frame.load(at - 6)?;
    Ok((word >> 48) as u16)
}

/// Replaces an address that no other checksum covers than that of an IPv4 header at `v4_header`; the change, for
/// those that do.
///
/// # Errors
/// [`Reason::HelperFailed`]; the packet may be half written and must be dropped.
#[inline(always)]
pub fn readdress(
    frame: &mut impl Frame,
    v4_header: Option<usize>,
    at: usize,
    (old, new): (Addr, Addr),
) -> Result<Delta, Reason> {
    if let Some(header) = v4_header {
        let change = Delta::NONE.word(old.v4_word(), new.v4_word());
        let sum = half(frame, header + 10).map_err(|_| Reason::HelperFailed)?;
        frame.store(at, new.v4_word())?;
        frame.store(header + 10, change.apply(sum))?;
        Ok(change)
    } else {
        let [first, second] = new.halves();
        frame.store(at, first)?;
        frame.store(at + 8, second)?;
        Ok(Delta::NONE.halves(old.halves(), new.halves()))
    }
}

#[inline(always)]
pub(super) fn rename(frame: &mut impl Frame, end: &Renaming) -> Result<(), Reason> {
    let address = readdress(frame, end.v4_header, end.address_at, end.addresses)?;
    let (old, new) = end.ports;
    frame.store(end.port_at, new.wire())?;
    let covered = if end.checksum.covers_addresses {
        address
    } else {
        Delta::NONE
    };
    let covered = covered.half(old.wire(), new.wire());
    let old = half(frame, end.checksum.at).map_err(|_| Reason::HelperFailed)?;
    let new = if end.checksum.optional {
        covered.apply_udp(old)
    } else {
        covered.apply(old)
    };
    frame.store(end.checksum.at, new)
}

/// The one's complement sum of `bytes` of a frame from `at` on, of at least 8 and at most 1280.
///
/// # Errors
/// [`Reason::Malformed`] when the frame ends before.
#[inline(always)]
pub fn sum(frame: &impl Frame, mut at: usize, bytes: usize) -> Result<u64, Reason> {
    const CHUNK: usize = 32;
    let mut sum = 0;
    let mut left = bytes;
    for _ in 0..1280 / CHUNK {
        if left < CHUNK {
            break;
        }
        let words: [u64; CHUNK / 8] = frame.load(at)?;
        for word in words {
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
        at += CHUNK;
        left -= CHUNK;
    }
    for _ in 0..CHUNK / 8 {
        if left < 8 {
            break;
        }
        let [word] = frame.load(at)?;
        sum += (word & 0xffff_ffff) + (word >> 32);
        at += 8;
        left -= 8;
    }
    if left != 0 {
        // The eight bytes that end where the message does, without those that were summed already.
        let [word] = frame.load(at + left - 8)?;
        let word = word >> (64 - 8 * left);
        sum += (word & 0xffff_ffff) + (word >> 32);
    }
    Ok(sum)
}
