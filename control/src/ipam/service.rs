//! A service as it asks for addresses, and its status as it is answered.
//!
//! Annotations are those of Cilium (`lbipam.cilium.io/…`, and its older `io.cilium/lb-ipam-…`) and of MetalLB.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::allocate::{Given, Request, Sharing};
use crate::object::{ObjectName, is_our_class};

/// The condition that says whether a service has what it asks for.
const SATISFIED: &str = "cilium.io/IPAMRequestSatisfied";

const ASKED: [&str; 4] = [
    "lbipam.cilium.io/ips",
    "io.cilium/lb-ipam-ips",
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
];
const SHARING: [&str; 4] = [
    "lbipam.cilium.io/sharing-key",
    "io.cilium/lb-ipam-sharing-key",
    "metallb.io/allow-shared-ip",
    "metallb.universe.tf/allow-shared-ip",
];
const ACROSS: [&str; 2] = [
    "lbipam.cilium.io/sharing-cross-namespace",
    "io.cilium/lb-ipam-sharing-cross-namespace",
];

/// What a service wants; none: it wants no address of ours.
pub(super) fn read(service: &Service) -> Option<Request> {
    let spec = service.spec.as_ref()?;
    let class = spec.load_balancer_class.as_deref();
    if spec.type_.as_deref() != Some("LoadBalancer") || !class.is_none_or(is_our_class) {
        return None;
    }
    let metadata = &service.metadata;
    let name = ObjectName {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    };
    let annotation = |keys: &[&str]| {
        let annotations = metadata.annotations.as_ref()?;
        keys.iter().find_map(|key| annotations.get(*key))
    };
    let list = |keys: &[&str]| {
        let text = annotation(keys).map(String::as_str).unwrap_or_default();
        let words = text
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut labels = metadata.labels.clone().unwrap_or_default();
    labels.extend([
        (
            "io.kubernetes.service.namespace".to_owned(),
            name.namespace.clone(),
        ),
        ("io.kubernetes.service.name".to_owned(), name.name.clone()),
    ]);
    let mut asked: Vec<IpAddr> = Vec::new();
    // What is no address asks for nothing: the service gets one all the same, as with Cilium.
    for text in list(&ASKED).iter().chain(&spec.load_balancer_ip) {
        asked.extend(text.parse::<IpAddr>().ok().filter(|ip| !asked.contains(ip)));
    }
    let families = spec.ip_families.iter().flatten();
    let mut families: Vec<bool> = families.map(|family| family == "IPv4").collect();
    if families.is_empty() {
        families.push(true);
    }
    let ports = spec.ports.iter().flatten();
    let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let sharing = annotation(&SHARING).map(|key| Sharing {
        key: key.clone(),
        namespaces: list(&ACROSS).into_iter().collect(),
        ports: ports
            .map(|port| {
                let protocol = port.protocol.clone();
                (protocol.unwrap_or_else(|| "TCP".to_owned()), port.port)
            })
            .collect::<BTreeSet<_>>(),
        local_to: is_local.then(|| spec.selector.clone().unwrap_or_default()),
    });
    Some(Request {
        name,
        created: metadata.creation_timestamp.as_ref().map(|time| time.0),
        labels,
        families,
        needs_all: spec.ip_family_policy.as_deref() != Some("PreferDualStack"),
        asked,
        sharing,
        held: held(service),
        is_answered: condition(service).is_some(),
    })
}

fn held(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.iter().flat_map(|b| b.ingress.iter().flatten());
    ingress
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect()
}

/// Our condition's status, reason and message.
fn condition(service: &Service) -> Option<(&str, &str, &str)> {
    let conditions = service.status.as_ref()?.conditions.iter().flatten();
    let mut ours = conditions.filter(|condition| condition.type_ == SATISFIED);
    let one = ours.next()?;
    Some((&one.status, &one.reason, &one.message))
}

/// What to write of a service's status, on the version it was read at; none when it stands there already.
pub(super) fn patch(service: &Service, given: &Given, now: jiff::Timestamp) -> Option<Value> {
    let wanted = match &given.lack {
        None => ("True", "satisfied", ""),
        Some(lack) => ("False", lack.reason, lack.message.as_str()),
    };
    let before = condition(service);
    if before == Some(wanted) && held(service) == given.addresses {
        return None;
    }
    let status = service.status.as_ref();
    let mut conditions: Vec<Value> = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten()
        .filter(|condition| condition.type_ != SATISFIED)
        .filter_map(|condition| serde_json::to_value(condition).ok())
        .collect();
    let (status, reason, message) = wanted;
    let since = service
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == SATISFIED && condition.status == status)
        .map_or(now, |condition| condition.last_transition_time.0);
    conditions.push(json!({
        "type": SATISFIED, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since.to_string(), "observedGeneration": service.metadata.generation,
    }));
    let ingress: Vec<Value> = given
        .addresses
        .iter()
        .map(|ip| json!({"ip": ip.to_string(), "ipMode": "VIP"}))
        .collect();
    Some(json!({
        "metadata": {"resourceVersion": service.metadata.resource_version},
        "status": {"loadBalancer": {"ingress": ingress}, "conditions": conditions},
    }))
}

/// What to write of a pool's status: numbers stand in messages, where Cilium's columns look for them.
pub(super) fn pool_status(
    before: &Value,
    usage: &super::allocate::Usage,
    wrong: Option<&str>,
    now: jiff::Timestamp,
) -> Option<Value> {
    let numbers = BTreeMap::from([
        ("cilium.io/IPsTotal", usage.total),
        (
            "cilium.io/IPsAvailable",
            usage.total.saturating_sub(usage.used),
        ),
        ("cilium.io/IPsUsed", usage.used),
    ]);
    let conflict = match (&usage.conflict, wrong) {
        (_, Some(why)) => ("True", "invalid", why.to_owned()),
        (Some(older), None) => (
            "True",
            "cidr_overlap",
            format!(
                "pool {older}, which is older, has addresses of this one; nothing is given of this one"
            ),
        ),
        (None, None) => ("False", "resolved", String::new()),
    };
    let mut wanted = vec![("cilium.io/PoolConflict", conflict)];
    for (kind, number) in numbers {
        wanted.push((kind, ("Unknown", "noreason", number.to_string())));
    }
    let none = Vec::new();
    let there = before
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .unwrap_or(&none);
    let mut is_new = false;
    let mut conditions: Vec<Value> = Vec::new();
    for (kind, (status, reason, message)) in wanted {
        let old = there.iter().find(|condition| condition["type"] == kind);
        let is_same = old.is_some_and(|old| {
            old["status"] == status && old["reason"] == reason && old["message"] == *message
        });
        is_new |= !is_same;
        conditions.push(match old {
            Some(old) if is_same => old.clone(),
            _ => json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": now.to_string(),
            }),
        });
    }
    let others = there.iter().filter(|old| {
        let ours = conditions.iter().any(|one| one["type"] == old["type"]);
        !ours
    });
    let others: Vec<Value> = others.cloned().collect();
    conditions.extend(others);
    is_new.then(|| json!({"status": {"conditions": conditions}}))
}

#[cfg(test)]
mod tests {
    use super::super::allocate::Lack;
    use super::*;

    fn service(text: &str) -> Service {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_service_says_what_it_wants_in_the_words_of_cilium_or_metallb() {
        let text = r#"{"metadata":{"name":"web","namespace":"shop","labels":{"app":"web"},"annotations":{
            "lbipam.cilium.io/ips":"192.0.2.1, 2001:db8::1,nonsense","metallb.io/allow-shared-ip":"k"}},
            "spec":{"type":"LoadBalancer","ipFamilies":["IPv6","IPv4"],"ipFamilyPolicy":"PreferDualStack",
            "loadBalancerIP":"192.0.2.1","ports":[{"port":53,"protocol":"UDP"},{"port":80}]}}"#;

        let request = read(&service(text)).unwrap();

        let asked: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(request.asked, asked);
        assert_eq!(request.families, [false, true]);
        assert!(!request.needs_all);
        assert_eq!(request.labels["io.kubernetes.service.namespace"], "shop");
        let sharing = request.sharing.unwrap();
        assert_eq!(sharing.key, "k");
        assert!(sharing.ports.contains(&("UDP".to_owned(), 53)));
        assert!(sharing.ports.contains(&("TCP".to_owned(), 80)));
    }

    #[test]
    fn what_is_no_load_balancer_or_of_another_class_wants_nothing() {
        for spec in [
            r#"{"type":"ClusterIP"}"#,
            r#"{"type":"LoadBalancer","loadBalancerClass":"example.com/theirs"}"#,
        ] {
            let text = format!(r#"{{"metadata":{{"name":"a"}},"spec":{spec}}}"#);
            assert_eq!(read(&service(&text)), None);
        }
    }

    #[test]
    fn an_answer_keeps_the_conditions_of_others_and_is_written_once() {
        let before = service(
            r#"{"metadata":{"name":"a","resourceVersion":"7"},"spec":{"type":"LoadBalancer"},"status":{"conditions":[
            {"type":"theirs","status":"True","reason":"r","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}"#,
        );
        let given = Given {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            lack: None,
        };

        let patch_ = patch(&before, &given, jiff::Timestamp::UNIX_EPOCH).unwrap();

        assert_eq!(patch_["metadata"]["resourceVersion"], "7");
        let status = &patch_["status"];
        assert_eq!(status["conditions"][0]["type"], "theirs");
        assert_eq!(status["conditions"][1]["status"], "True");
        let mut whole = serde_json::to_value(&before).unwrap();
        whole["status"] = status.clone();
        let after: Service = serde_json::from_value(whole).unwrap();
        assert_eq!(patch(&after, &given, jiff::Timestamp::MAX), None);
        let lack = Lack {
            reason: "out_of_ips",
            message: "none left".to_owned(),
        };
        let taken = Given {
            addresses: vec![],
            lack: Some(lack),
        };
        let patch_ = patch(&after, &taken, jiff::Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(patch_["status"]["loadBalancer"]["ingress"], json!([]));
        assert_eq!(patch_["status"]["conditions"][1]["reason"], "out_of_ips");
    }
}
