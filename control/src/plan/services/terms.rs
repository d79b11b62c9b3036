//! What services ask for beside backends: who is let in, and that a client stays with its backend.

use fairlead_common::addr::Addr;
use fairlead_common::service::{SourceRange, service_flags};

use crate::desired::{Frontend, Service};

/// The flags of a service's row.
pub(super) fn flags(service: &Service) -> u32 {
    let mut flags = 0;
    if service.source_ranges.is_some() {
        flags |= service_flags::SOURCE_RANGES;
    }
    if service.affinity.is_some() {
        flags |= service_flags::AFFINITY;
    }
    flags
}

/// The rows of the sources that a service with this id lets in, those of its address's family.
pub(super) fn source_ranges(id: u32, frontend: &Frontend, service: &Service) -> Vec<SourceRange> {
    let ranges = service.source_ranges.iter().flatten();
    ranges
        .map(|range| (Addr::new(range.network()), range))
        // An IPv6 prefix of mapped addresses means sources that no packet has.
        .filter(|(addr, range)| {
            range.is_ipv4() == frontend.addr.is_ipv4() && addr.is_v4() == range.is_ipv4()
        })
        .map(|(addr, range)| SourceRange::new(id, addr, range.prefix()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fairlead_common::addr::Proto;

    use super::*;
    use crate::desired::Scope;

    fn rows(addr: &str, ranges: &[&str]) -> Vec<String> {
        let frontend = Frontend {
            addr: addr.parse().unwrap(),
            port: 80,
            proto: Proto::TCP,
            scope: Scope::Outside,
        };
        let service = Service {
            source_ranges: Some(ranges.iter().map(|text| text.parse().unwrap()).collect()),
            ..Service::default()
        };
        assert_eq!(flags(&service), service_flags::SOURCE_RANGES);
        let rows = source_ranges(7, &frontend, &service).into_iter();
        rows.map(|row| {
            assert_eq!(row.service, 7);
            format!("{}/{} in {} bits", row.addr.ip(), row.length(), row.bits)
        })
        .collect()
    }

    #[test]
    fn ranges_of_the_other_family_let_nobody_in() {
        let ranges = ["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "::/0"];

        assert_eq!(
            rows("192.0.2.1", &ranges),
            ["0.0.0.0/0 in 128 bits", "10.0.0.0/8 in 136 bits"]
        );
        assert_eq!(
            rows("2001:db8::1", &ranges),
            ["::/0 in 32 bits", "2001:db8::/32 in 64 bits"]
        );
    }

    #[test]
    fn mapped_addresses_are_nobodys() {
        assert!(rows("2001:db8::1", &["::ffff:0:0/96"]).is_empty());
        assert!(rows("192.0.2.1", &["::ffff:0:0/96"]).is_empty());
    }

    #[test]
    fn a_service_without_terms_has_no_flags() {
        assert_eq!(flags(&Service::default()), 0);
        let with_affinity = Service {
            affinity: Some(Duration::from_secs(1)),
            ..Service::default()
        };
        assert_eq!(flags(&with_affinity), service_flags::AFFINITY);
    }
}
