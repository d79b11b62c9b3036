//! Leaves out of an UPDATE what belongs to address families that the session does not have.
//!
//! RFC 4760 §8 lets a peer send only what both sides named in their OPENs. What it sends besides
//! is not ours to read: its prefixes may be of a shape that no decoder of ours knows, and RFC 4760
//! §7 and RFC 7606 §2 allow to ignore the family instead of ending the session. So such
//! attributes are taken out before anything looks into them.
//!
//! Not for faults inside families that the session has: those are the codec's to judge.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};

use super::{Family, Fault, FaultAction, Notification};

const MP_REACH_NLRI: u8 = 14;
const MP_UNREACH_NLRI: u8 = 15;
/// Attribute flag: the length takes two octets (RFC 4271 §4.3).
const EXTENDED_LENGTH: u8 = 0x10;

/// Path attributes of which those of other families were taken out.
pub(super) struct Stripped {
    pub(super) attributes: Bytes,
    pub(super) faults: Vec<Fault>,
}

/// Takes out MP_REACH_NLRI and MP_UNREACH_NLRI of other families; `None`: there are none.
///
/// # Errors
/// One of the two occurs twice (RFC 7606 §3 g).
pub(super) fn strip(
    attributes: &Bytes,
    families: &BTreeSet<Family>,
) -> Result<Option<Stripped>, Notification> {
    let mut kept = BytesMut::new();
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    let mut rest = &attributes[..];
    while let Some((code, whole, value)) = split(rest) {
        let (attribute, after) = rest.split_at(whole);
        rest = after;
        let is_multiprotocol = matches!(code, MP_REACH_NLRI | MP_UNREACH_NLRI);
        if is_multiprotocol && !seen.insert(code) {
            return Err(Notification::bare(3, 1));
        }
        // One that is too short to name its family is the codec's to refuse.
        if let (true, [afi_high, afi_low, safi, ..]) = (is_multiprotocol, value) {
            let afi = u16::from_be_bytes([*afi_high, *afi_low]);
            if !families
                .iter()
                .any(|family| family.numbers() == (afi, *safi))
            {
                if faults.is_empty() {
                    let before = attributes.len() - rest.len() - whole;
                    kept.extend_from_slice(&attributes[..before]);
                }
                faults.push(Fault {
                    attribute: code,
                    action: FaultAction::DiscardAttribute,
                    detail: format!("AFI {afi} SAFI {safi} is not a family of this session"),
                });
                continue;
            }
        }
        if !faults.is_empty() {
            kept.extend_from_slice(attribute);
        }
    }
    if faults.is_empty() {
        return Ok(None);
    }
    // What cannot be split is the codec's to judge.
    kept.extend_from_slice(rest);
    Ok(Some(Stripped {
        attributes: kept.freeze(),
        faults,
    }))
}

/// Type code, octets and value of the attribute that begins `bytes`.
fn split(bytes: &[u8]) -> Option<(u8, usize, &[u8])> {
    let (&flags, &code) = (bytes.first()?, bytes.get(1)?);
    let (header, length) = if flags & EXTENDED_LENGTH == 0 {
        (3, usize::from(*bytes.get(2)?))
    } else {
        let length = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        (4, usize::from(length))
    };
    let value = bytes.get(header..header + length)?;
    Some((code, header + length, value))
}
