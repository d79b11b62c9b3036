//! Update groups, as text: what `show bgp update-groups` of a router says, in our words.

use crate::api::types::BgpGroup;
use crate::dpctl::args::Global;
use crate::dpctl::render::{Align::Left, Align::Right, rows};
use crate::dpctl::run::dash;

/// Draws all groups; with the names of their peers when `wide`.
pub(super) fn text(global: &Global, groups: &[BgpGroup], wide: bool) -> String {
    let mut columns = vec![
        ("LOCAL AS", Right),
        ("GROUP", Right),
        ("KIND", Left),
        ("PEERS", Right),
        ("BEHIND", Right),
        ("WAITING", Right),
        ("TRANSIT", Left),
        ("FAMILY", Left),
        ("NEXT HOP", Left),
        ("PASSED ON", Right),
    ];
    if wide {
        columns.extend([
            ("LONGEST MESSAGE", Right),
            ("ROLE", Left),
            ("PEER NAMES", Left),
            ("NAMES BEHIND", Left),
        ]);
    }
    let mut lines = Vec::new();
    for group in groups {
        for (index, family) in group.families.iter().enumerate() {
            let is_first = index == 0;
            let mut cells = if is_first {
                let kind = if group.internal {
                    "internal"
                } else {
                    "external"
                };
                vec![
                    group.local_asn.to_string(),
                    group.number.to_string(),
                    kind.to_owned(),
                    group.peers.len().to_string(),
                    group.behind.len().to_string(),
                    group.waiting.to_string(),
                    if group.transit { "yes" } else { "-" }.to_owned(),
                ]
            } else {
                vec![String::new(); 7]
            };
            cells.extend([
                family.family.clone(),
                dash(family.next_hop.as_deref().unwrap_or_default()),
                family.passed_on.to_string(),
            ]);
            if wide && is_first {
                cells.extend([
                    group.longest_message.to_string(),
                    dash(group.role.as_deref().unwrap_or_default()),
                    group.peers.join(" "),
                    dash(&group.behind.join(" ")),
                ]);
            }
            lines.push(cells);
        }
    }
    rows(global, &columns, lines)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::types::BgpGroupFamily;
    use crate::dpctl::args::Output;

    pub(in super::super) fn group() -> BgpGroup {
        let family = |family: &str, next_hop: Option<&str>, passed_on| BgpGroupFamily {
            family: family.to_owned(),
            next_hop: next_hop.map(ToOwned::to_owned),
            passed_on,
        };
        BgpGroup {
            local_asn: 65001,
            number: 2,
            internal: false,
            families: vec![
                family("ipv4-unicast", Some("10.0.0.1"), 12),
                family("ipv6-unicast", None, 0),
            ],
            longest_message: 4096,
            role: Some("provider".to_owned()),
            graceful_shutdown: false,
            transit: true,
            waiting: 3,
            peers: ["10.0.0.2", "fd77::2"].map(ToOwned::to_owned).into(),
            behind: vec!["fd77::2".to_owned()],
        }
    }

    #[test]
    fn a_group_is_shown_by_family_with_its_peers_when_wide() {
        let global = Global {
            socket: "/nowhere".into(),
            pin_path: None,
            output: Output::Table,
            no_headers: false,
        };
        let shown = |wide| -> Vec<Vec<String>> {
            let text = text(&global, &[group()], wide);
            let lines = text.lines().skip(1);
            let words = |line: &str| line.split_whitespace().map(ToOwned::to_owned).collect();
            lines.map(words).collect()
        };
        let first = ["65001", "2", "external", "2", "1", "3", "yes"];
        let v4 = ["ipv4-unicast", "10.0.0.1", "12"];
        let wide = ["4096", "provider", "10.0.0.2", "fd77::2", "fd77::2"];
        assert_eq!(shown(false)[0], [&first[..], &v4].concat());
        assert_eq!(shown(false)[1], ["ipv6-unicast", "-", "0"]);
        assert_eq!(shown(true)[0], [&first[..], &v4, &wide].concat());
    }
}
