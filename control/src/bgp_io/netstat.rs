//! What the kernel counted of segments that TCP MD5 made it drop.
//!
//! The counters are of the whole network namespace since it was made: they say that something was
//! dropped, not from whom.

use std::io;

/// Segments that were dropped for their signature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Md5Drops {
    /// A password is configured, and the segment was not signed.
    pub unsigned: u64,
    /// No password is configured, and the segment was signed.
    pub unexpected: u64,
    /// Signed with another password.
    pub mismatched: u64,
}

impl Md5Drops {
    /// As the kernel says now.
    ///
    /// # Errors
    /// `/proc/thread-self/net/netstat` cannot be read.
    pub fn read() -> io::Result<Self> {
        std::fs::read_to_string("/proc/thread-self/net/netstat").map(|text| Self::of_netstat(&text))
    }

    /// Lines come in pairs: names, then numbers in the same order.
    fn of_netstat(text: &str) -> Self {
        let mut lines = text.lines();
        let mut drops = Self::default();
        while let (Some(names), Some(numbers)) = (lines.next(), lines.next()) {
            for (name, number) in names.split_whitespace().zip(numbers.split_whitespace()) {
                let counter = match name {
                    "TCPMD5NotFound" => &mut drops.unsigned,
                    "TCPMD5Unexpected" => &mut drops.unexpected,
                    "TCPMD5Failure" => &mut drops.mismatched,
                    _ => continue,
                };
                *counter = number.parse().unwrap_or_default();
            }
        }
        drops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_signatures_are_found_by_name() {
        let text = "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure Other\n\
                    TcpExt: 0 1 2 3 4\n\
                    IpExt: InNoRoutes\nIpExt: 9\n";
        let drops = Md5Drops {
            unsigned: 1,
            unexpected: 2,
            mismatched: 3,
        };
        assert_eq!(Md5Drops::of_netstat(text), drops);
    }

    #[test]
    fn this_kernel_has_the_counters() {
        let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
        for name in ["TCPMD5NotFound", "TCPMD5Unexpected", "TCPMD5Failure"] {
            assert!(text.contains(name), "{name}");
        }
    }
}
