//! The rules that decide which routes a session carries, in words.

use fairlead_bgp::snapshot::PolicySnapshot;
use fairlead_bgp::{ExportRule, ImportPolicy, PrefixRule};

use crate::api::types::Policy;

/// The rules of a peer with what each decided, in the order in which they are asked.
pub(super) fn rows(local_asn: u32, policy: &PolicySnapshot) -> Vec<Policy> {
    let row = |direction: &str, rule: String, does: &str, prefixes: usize| Policy {
        local_asn,
        peer: policy.peer.clone(),
        direction: direction.to_owned(),
        rule,
        does: does.to_owned(),
        prefixes,
    };
    let mut rows: Vec<_> = policy
        .rejected
        .iter()
        .map(|(rejection, count)| row("in", rejection.to_string(), "do not use", *count))
        .collect();
    match &policy.import {
        ImportPolicy::Nothing | ImportPolicy::All => {
            let does = match policy.import {
                ImportPolicy::All => "use",
                ImportPolicy::Nothing | ImportPolicy::Prefixes(_) => "do not use",
            };
            let all = import(&policy.import);
            if policy.import == ImportPolicy::All || policy.rejected.is_empty() {
                rows.push(row("in", all, does, policy.accepted));
            }
        }
        ImportPolicy::Prefixes(_) => {
            let rules = policy.rules.iter();
            rows.extend(rules.map(|(rule, count)| row("in", bounds(rule), "use", *count)));
        }
    }
    let ours = "what BGP advertisements select".to_owned();
    rows.push(row("out", ours, "announce", policy.announced));
    rows.extend(
        policy
            .export
            .iter()
            .map(|(rule, count)| row("out", marks(rule), "mark", *count)),
    );
    let others = "best paths of other peers (`transit`)".to_owned();
    if policy.transit {
        rows.push(row("out", others, "pass on", policy.passed_on));
    }
    rows
}

/// An import policy in a few words.
pub(super) fn import(policy: &ImportPolicy) -> String {
    match policy {
        ImportPolicy::Nothing => "none (`bgp.import` names no prefix; RFC 8212)".to_owned(),
        ImportPolicy::All => "all prefixes".to_owned(),
        ImportPolicy::Prefixes(rules) => {
            let rules: Vec<_> = rules.iter().map(bounds).collect();
            rules.join(", ")
        }
    }
}

fn bounds(rule: &PrefixRule) -> String {
    let bound = |name: &str, length: Option<u8>| length.map(|length| format!(" {name} {length}"));
    let (least, most) = (bound("ge", rule.ge), bound("le", rule.le));
    format!(
        "{}{}{}",
        rule.prefix,
        least.unwrap_or_default(),
        most.unwrap_or_default()
    )
}

fn marks(rule: &ExportRule) -> String {
    let standard = rule.communities.iter();
    let mut marks: Vec<_> = standard
        .map(|community| format!("community {}:{}", community >> 16, community & 0xFFFF))
        .collect();
    let large = rule.large_communities.iter();
    marks.extend(large.map(|community| format!("community {community}")));
    marks.extend(
        rule.local_pref
            .map(|value| format!("local preference {value}")),
    );
    marks.join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fairlead_bgp::Rejection;

    use super::*;

    #[test]
    fn every_rule_has_a_row_with_what_it_decided() {
        let rule = PrefixRule {
            prefix: "10.0.0.0/8".parse().unwrap(),
            ge: Some(16),
            le: Some(24),
        };
        let mut policy = PolicySnapshot {
            peer: "10.0.0.1".to_owned(),
            import: ImportPolicy::Prefixes(vec![rule]),
            rules: vec![(rule, 5)],
            accepted: 5,
            rejected: BTreeMap::from([(Rejection::NotImported, 2)]),
            export: vec![(
                ExportRule {
                    communities: [65000 << 16 | 7].into(),
                    local_pref: Some(200),
                    ..ExportRule::default()
                },
                1,
            )],
            announced: 3,
            transit: true,
            passed_on: 9,
        };
        let shown = |policy: &PolicySnapshot| -> Vec<String> {
            let rows = rows(65001, policy).into_iter();
            rows.map(|row| {
                format!(
                    "{} {}: {} {}",
                    row.direction, row.rule, row.does, row.prefixes
                )
            })
            .collect()
        };
        assert_eq!(
            shown(&policy),
            [
                "in the import policy does not name it: do not use 2",
                "in 10.0.0.0/8 ge 16 le 24: use 5",
                "out what BGP advertisements select: announce 3",
                "out community 65000:7, local preference 200: mark 1",
                "out best paths of other peers (`transit`): pass on 9",
            ]
        );
        policy.import = ImportPolicy::Nothing;
        policy.rejected.clear();
        policy.accepted = 0;
        assert_eq!(
            shown(&policy)[0],
            "in none (`bgp.import` names no prefix; RFC 8212): do not use 0"
        );
    }
}
