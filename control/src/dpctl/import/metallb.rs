//! MetalLB's objects (`metallb.io`) in the kinds of Cilium and ours.
//!
//! | MetalLB | here |
//! |---|---|
//! | IPAddressPool | CiliumLoadBalancerIPPool |
//! | BGPPeer | a peer of the CiliumBGPClusterConfig of its nodes, and a CiliumBGPPeerConfig |
//! | BGPAdvertisement | CiliumBGPAdvertisement; labels say to which peers |
//! | BFDProfile | BGPPeerProfile of the peers that name it |
//! | Community | its value, wherever it is named |

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::dpctl::args::duration;

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Converted {
    /// In the order in which they can be applied.
    pub(super) documents: Vec<Value>,
    /// What has no counterpart, or needs a hand.
    pub(super) notes: Vec<String>,
}

/// Converts whatever of it is MetalLB's; lists are taken apart.
pub(super) fn convert(documents: &[Value]) -> Converted {
    let mut objects = Vec::new();
    for one in documents {
        flatten(one, &mut objects);
    }
    let mut out = Converted::default();
    let of_kind = |kind: &str| -> Vec<&Value> {
        let ours = |object: &&&Value| is_theirs(object) && object["kind"] == kind;
        objects.iter().filter(ours).copied().collect()
    };
    let peers = of_kind("BGPPeer");
    for pool in of_kind("IPAddressPool") {
        out.pool(pool);
    }
    out.clusters(&peers);
    for peer in &peers {
        out.peer_config(peer);
    }
    let communities = communities(&of_kind("Community"));
    for advertisement in of_kind("BGPAdvertisement") {
        out.advertisement(advertisement, &peers, &communities);
    }
    for profile in of_kind("BFDProfile") {
        out.bfd(profile, &peers);
    }
    for object in objects {
        let kind = object["kind"].as_str().unwrap_or("an object without kind");
        let is_known = [
            "IPAddressPool",
            "BGPPeer",
            "BGPAdvertisement",
            "BFDProfile",
            "Community",
        ];
        if !is_theirs(object) {
            out.note(object, "is no object of metallb.io; left out");
        } else if kind == "L2Advertisement" {
            out.note(object, "services are announced by BGP only; left out");
        } else if !is_known.contains(&kind) {
            out.note(object, "has no counterpart; left out");
        }
    }
    out
}

fn flatten<'a>(document: &'a Value, objects: &mut Vec<&'a Value>) {
    match document["items"].as_array() {
        Some(items) => {
            for item in items {
                flatten(item, objects);
            }
        }
        None if document.is_null() => {}
        None => objects.push(document),
    }
}

fn is_theirs(object: &Value) -> bool {
    let version = object["apiVersion"].as_str();
    version.is_some_and(|version| version.starts_with("metallb.io/"))
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or("unnamed")
}

/// Values by name.
fn communities(objects: &[&Value]) -> BTreeMap<String, String> {
    let named = objects
        .iter()
        .flat_map(|object| list(&object["spec"]["communities"]));
    named
        .filter_map(|one| {
            let (name, value) = (one["name"].as_str()?, one["value"].as_str()?);
            Some((name.to_owned(), value.to_owned()))
        })
        .collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn texts(value: &Value) -> Vec<&str> {
    list(value).filter_map(Value::as_str).collect()
}

/// Puts a value where it is one.
fn set(map: &mut Map<String, Value>, key: &str, value: Value) {
    if !value.is_null() {
        map.insert(key.to_owned(), value);
    }
}

/// By this label an advertisement says to whom it is told.
fn label(peer: &Value) -> String {
    format!("peer-{}", name(peer))
}

fn document(kind: (&str, &str), name: &str, spec: &Value) -> Value {
    let (api_version, kind) = kind;
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

impl Converted {
    fn note(&mut self, object: &Value, note: &str) {
        let kind = object["kind"].as_str().unwrap_or("object");
        self.notes.push(format!("{kind} {}: {note}", name(object)));
    }

    fn pool(&mut self, pool: &Value) {
        let spec = &pool["spec"];
        let mut blocks = Vec::new();
        for addresses in texts(&spec["addresses"]) {
            blocks.push(match addresses.split_once('-') {
                Some((start, stop)) => json!({"start": start.trim(), "stop": stop.trim()}),
                None => json!({"cidr": addresses.trim()}),
            });
        }
        let mut to = Map::new();
        to.insert("blocks".to_owned(), blocks.into());
        if spec["avoidBuggyIPs"] == true {
            to.insert("allowFirstLastIPs".to_owned(), "No".into());
            self.note(
                pool,
                "avoidBuggyIPs: the first and the last address of each cidr are kept back, not every .0 and .255",
            );
        }
        if spec["autoAssign"] == false {
            self.note(
                pool,
                "autoAssign: false has no counterpart; give it a serviceSelector that only those services fit which ask for it",
            );
        }
        let allocation = &spec["serviceAllocation"];
        let namespaces = texts(&allocation["namespaces"]);
        let mut selectors: Vec<_> = list(&allocation["serviceSelectors"]).cloned().collect();
        if selectors.len() > 1 {
            self.note(
                pool,
                "serviceSelectors: one alone can be read, and the first is; make a pool of each",
            );
        }
        let mut selector = if selectors.is_empty() {
            json!({})
        } else {
            selectors.swap_remove(0)
        };
        if !namespaces.is_empty() {
            let mut needs: Vec<_> = list(&selector["matchExpressions"]).cloned().collect();
            needs.push(json!({
                "key": "io.kubernetes.service.namespace", "operator": "In", "values": namespaces,
            }));
            selector["matchExpressions"] = needs.into();
        }
        if !texts_of_keys(&allocation["namespaceSelectors"]).is_empty() {
            self.note(
                pool,
                "namespaceSelectors have no counterpart; name the namespaces in serviceSelector",
            );
        }
        if allocation["priority"].as_u64().is_some_and(|p| p > 0) {
            self.note(pool, "priority has no counterpart; pools are taken by age");
        }
        if selector != json!({}) {
            to.insert("serviceSelector".to_owned(), selector);
        }
        let kind = ("cilium.io/v2", "CiliumLoadBalancerIPPool");
        self.documents.push(document(kind, name(pool), &to.into()));
    }

    /// One configuration for each set of nodes, with an instance for each AS of ours.
    fn clusters(&mut self, peers: &[&Value]) {
        let mut by_nodes: Vec<(Value, Vec<&Value>)> = Vec::new();
        for peer in peers {
            let mut selectors: Vec<_> = list(&peer["spec"]["nodeSelectors"]).cloned().collect();
            if selectors.is_empty() {
                selectors.push(json!({}));
            }
            for selector in selectors {
                match by_nodes.iter_mut().find(|(nodes, _)| *nodes == selector) {
                    Some((_, of_nodes)) => of_nodes.push(peer),
                    None => by_nodes.push((selector, vec![peer])),
                }
            }
        }
        if by_nodes.len() > 1 {
            self.notes.push(
                "CiliumBGPClusterConfig: a node may be selected by one only; peers with other nodeSelectors are in others, so see to it that their selectors do not meet"
                    .to_owned(),
            );
        }
        for (place, (nodes, peers)) in by_nodes.iter().enumerate() {
            let mut instances = BTreeMap::<u64, Vec<Value>>::new();
            for peer in peers {
                let spec = &peer["spec"];
                let mut to = Map::new();
                set(&mut to, "name", name(peer).into());
                set(&mut to, "peerASN", spec["peerASN"].clone());
                set(&mut to, "peerAddress", spec["peerAddress"].clone());
                set(&mut to, "peerConfigRef", json!({"name": name(peer)}));
                let own = spec["myASN"].as_u64().unwrap_or_default();
                instances.entry(own).or_default().push(to.into());
            }
            let instances: Vec<_> = instances
                .into_iter()
                .map(|(own, peers)| json!({"name": format!("as{own}"), "localASN": own, "peers": peers}))
                .collect();
            let mut spec = Map::new();
            if *nodes != json!({}) {
                spec.insert("nodeSelector".to_owned(), nodes.clone());
            }
            spec.insert("bgpInstances".to_owned(), instances.into());
            let name = match place {
                0 => "metallb".to_owned(),
                place => format!("metallb-{place}"),
            };
            let kind = ("cilium.io/v2", "CiliumBGPClusterConfig");
            self.documents.push(document(kind, &name, &spec.into()));
        }
    }

    fn peer_config(&mut self, peer: &Value) {
        let spec = &peer["spec"];
        let mut timers = Map::new();
        for (from, to) in [
            ("holdTime", "holdTimeSeconds"),
            ("keepaliveTime", "keepAliveTimeSeconds"),
            ("connectTime", "connectRetryTimeSeconds"),
        ] {
            let Some(text) = spec[from].as_str() else {
                continue;
            };
            match duration(text) {
                Ok(time) => set(&mut timers, to, time.as_secs().into()),
                Err(why) => self.note(peer, &format!("{from}: {text:?}: {why}; left out")),
            }
        }
        let mut to = Map::new();
        if !timers.is_empty() {
            to.insert("timers".to_owned(), timers.into());
        }
        if let Some(port) = spec["peerPort"].as_u64().filter(|port| *port != 179) {
            to.insert("transport".to_owned(), json!({"peerPort": port}));
        }
        if spec["ebgpMultiHop"] == true {
            to.insert("ebgpMultihop".to_owned(), 255.into());
        }
        if spec["enableGracefulRestart"] == true {
            to.insert("gracefulRestart".to_owned(), json!({"enabled": true}));
        }
        let secret = match (&spec["passwordSecret"]["name"], spec["password"].as_str()) {
            (Value::String(secret), _) => {
                self.note(
                    peer,
                    &format!("its Secret {secret} must be in kube-system, or where bgp.secretsNamespace says"),
                );
                Some(secret.clone())
            }
            (_, Some(password)) if !password.is_empty() => {
                let secret = format!("{}-password", name(peer));
                self.documents.push(json!({
                    "apiVersion": "v1", "kind": "Secret",
                    "metadata": {"name": secret, "namespace": "kube-system"},
                    "stringData": {"password": password},
                }));
                Some(secret)
            }
            _ => None,
        };
        set(&mut to, "authSecretRef", secret.into());
        let told = json!({"matchLabels": {label(peer): "true"}});
        let families = ["ipv4", "ipv6"]
            .map(|afi| json!({"afi": afi, "safi": "unicast", "advertisements": told}));
        to.insert("families".to_owned(), families.to_vec().into());
        for field in [
            "sourceAddress",
            "routerID",
            "vrf",
            "interface",
            "dynamicASN",
            "disableMP",
        ] {
            if !matches!(&spec[field], Value::Null | Value::Bool(false)) {
                let more = if field == "routerID" {
                    "; a CiliumBGPNodeConfigOverride says it for each node"
                } else {
                    ""
                };
                self.note(peer, &format!("{field} is left out{more}"));
            }
        }
        let kind = ("cilium.io/v2", "CiliumBGPPeerConfig");
        self.documents.push(document(kind, name(peer), &to.into()));
    }

    fn advertisement(
        &mut self,
        advertisement: &Value,
        peers: &[&Value],
        communities: &BTreeMap<String, String>,
    ) {
        let spec = &advertisement["spec"];
        let mut service = Map::new();
        service.insert("addresses".to_owned(), json!(["LoadBalancerIP"]));
        for (from, to, whole) in [
            ("aggregationLength", "aggregationLengthIPv4", 32),
            ("aggregationLengthV6", "aggregationLengthIPv6", 128),
        ] {
            let length = spec[from].as_u64().filter(|length| *length < whole);
            set(&mut service, to, length.into());
        }
        let (mut standard, mut large) = (Vec::new(), Vec::new());
        for word in texts(&spec["communities"]) {
            let value = communities.get(word).map_or(word, String::as_str);
            match value.strip_prefix("large:") {
                Some(value) => large.push(value),
                None if value.contains(':') => standard.push(value),
                None => self.note(
                    advertisement,
                    &format!("community {word} is defined by no Community in the file; left out"),
                ),
            }
        }
        let mut attributes = Map::new();
        let mut kinds = Map::new();
        if !standard.is_empty() {
            kinds.insert("standard".to_owned(), json!(standard));
        }
        if !large.is_empty() {
            kinds.insert("large".to_owned(), json!(large));
        }
        if !kinds.is_empty() {
            attributes.insert("communities".to_owned(), kinds.into());
        }
        set(
            &mut attributes,
            "localPreference",
            spec["localPref"].clone(),
        );
        let mut told = Map::new();
        set(&mut told, "advertisementType", "Service".into());
        set(&mut told, "service", service.into());
        // Every service: nobody has this label.
        let all = json!({"matchExpressions": [
            {"key": "fairlead.io/not-announced", "operator": "DoesNotExist"},
        ]});
        set(&mut told, "selector", all);
        if !attributes.is_empty() {
            set(&mut told, "attributes", attributes.into());
        }
        let only = texts(&spec["peers"]);
        let labels: Map<_, _> = peers
            .iter()
            .filter(|peer| only.is_empty() || only.contains(&name(peer)))
            .map(|peer| (label(peer), "true".into()))
            .collect();
        let pools = texts(&spec["ipAddressPools"]);
        if !pools.is_empty() || list(&spec["ipAddressPoolSelectors"]).next().is_some() {
            self.note(
                advertisement,
                "announces the services of all pools: label the services of these pools, and select them in its selector",
            );
        }
        if list(&spec["nodeSelectors"]).next().is_some() {
            self.note(
                advertisement,
                "nodeSelectors: what is announced where follows from the peers of the nodes; left out",
            );
        }
        let kind = ("cilium.io/v2", "CiliumBGPAdvertisement");
        let mut made = document(
            kind,
            name(advertisement),
            &json!({"advertisements": [told]}),
        );
        made["metadata"]["labels"] = labels.into();
        self.documents.push(made);
    }

    fn bfd(&mut self, profile: &Value, peers: &[&Value]) {
        let spec = &profile["spec"];
        let of: Vec<_> = peers
            .iter()
            .filter(|peer| peer["spec"]["bfdProfile"] == name(profile))
            .map(|peer| json!({"peerConfig": name(peer)}))
            .collect();
        if of.is_empty() {
            self.note(profile, "no BGPPeer in the file names it; left out");
            return;
        }
        for field in ["echoMode", "passiveMode"] {
            if spec[field] == true {
                self.note(profile, &format!("{field} is left out"));
            }
        }
        let mut bfd = Map::new();
        for (from, to) in [
            ("detectMultiplier", "detectMultiplier"),
            ("transmitInterval", "transmitIntervalMilliseconds"),
            ("receiveInterval", "receiveIntervalMilliseconds"),
        ] {
            set(&mut bfd, to, spec[from].clone());
        }
        let kind = ("fairlead.io/v1alpha1", "BGPPeerProfile");
        let spec = json!({"peers": of, "bfd": bfd});
        self.documents.push(document(kind, name(profile), &spec));
    }
}

/// The keys and values of selectors, to see whether there are any.
fn texts_of_keys(selectors: &Value) -> Vec<String> {
    list(selectors).map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::resource;

    const FILE: &str = r#"
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: { name: public, namespace: metallb-system }
spec:
  addresses: [203.0.113.0/28, "198.51.100.10-198.51.100.20", "2001:db8::/124"]
  serviceAllocation: { namespaces: [shop] }
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: { name: tor }
spec:
  myASN: 64512
  peerASN: 64513
  peerAddress: 10.0.0.1
  peerPort: 1179
  holdTime: 1m30s
  keepaliveTime: 30s
  ebgpMultiHop: true
  password: secret
  bfdProfile: fast
  sourceAddress: 10.0.0.2
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: { name: all }
spec: { aggregationLength: 32, localPref: 100, communities: [vip, "64512:7"] }
---
apiVersion: v1
kind: List
items:
  - apiVersion: metallb.io/v1beta1
    kind: Community
    metadata: { name: named }
    spec: { communities: [{ name: vip, value: "large:64512:1:2" }] }
  - apiVersion: metallb.io/v1beta1
    kind: BFDProfile
    metadata: { name: fast }
    spec: { receiveInterval: 50, transmitInterval: 50, detectMultiplier: 3 }
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: { name: arp }
"#;

    fn converted() -> Converted {
        convert(&serde_saphyr::from_multiple::<Value>(FILE).unwrap())
    }

    #[test]
    fn what_comes_of_it_is_read_without_a_complaint() {
        for made in converted().documents {
            if made["kind"] == "CiliumLoadBalancerIPPool" {
                continue;
            }
            let read = resource::read_value("here", made.clone());
            assert_eq!(read.conditions, [], "{made}");
            assert_eq!(read.objects.len(), 1, "{made}");
        }
    }

    #[test]
    fn every_field_has_its_counterpart_or_a_note() {
        let converted = converted();
        let find = |kind: &str| {
            let mut all = converted.documents.iter();
            &all.find(|made| made["kind"] == kind).unwrap()["spec"]
        };

        let pool = find("CiliumLoadBalancerIPPool");
        assert_eq!(pool["blocks"][0], json!({"cidr": "203.0.113.0/28"}));
        let range = json!({"start": "198.51.100.10", "stop": "198.51.100.20"});
        assert_eq!(pool["blocks"][1], range);
        let need = &pool["serviceSelector"]["matchExpressions"][0];
        assert_eq!(need["values"], json!(["shop"]));
        let instance = &find("CiliumBGPClusterConfig")["bgpInstances"][0];
        assert_eq!(instance["localASN"], 64512);
        assert_eq!(instance["peers"][0]["peerAddress"], "10.0.0.1");
        let peer = find("CiliumBGPPeerConfig");
        assert_eq!(peer["timers"]["holdTimeSeconds"], 90);
        assert_eq!(peer["transport"]["peerPort"], 1179);
        assert_eq!(peer["authSecretRef"], "tor-password");
        let told = &find("CiliumBGPAdvertisement")["advertisements"][0];
        assert_eq!(told["service"], json!({"addresses": ["LoadBalancerIP"]}));
        let communities = json!({"standard": ["64512:7"], "large": ["64512:1:2"]});
        assert_eq!(told["attributes"]["communities"], communities);
        let profile = find("BGPPeerProfile");
        assert_eq!(profile["peers"], json!([{"peerConfig": "tor"}]));
        assert_eq!(profile["bfd"]["transmitIntervalMilliseconds"], 50);
        let notes = converted.notes.join("\n");
        for said in [
            "BGPPeer tor: sourceAddress is left out",
            "L2Advertisement arp: services are announced by BGP only; left out",
        ] {
            assert!(notes.contains(said), "{notes}");
        }
    }
}
