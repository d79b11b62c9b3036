use serde_json::{Value, json};

use super::super::snapshot;
use super::*;

const SERVICES: usize = 1;
const POLICIES: usize = 4;

fn id(kind: usize) -> WatchId {
    WatchId { kind, name: None }
}

fn heard(id: WatchId, object: Value) -> Heard {
    let read = Read::of("https://api", id.kind, object);
    Heard::Object(id, Box::new(read))
}

fn service(name: &str, port: impl Into<Value>) -> Heard {
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"ports": [{"port": port.into()}]},
    });
    heard(id(SERVICES), object)
}

fn policy(secret: Option<&str>) -> Heard {
    let object = json!({
        "apiVersion": "cilium.io/v2alpha1", "kind": "CiliumBGPPeeringPolicy", "metadata": {"name": "rack"},
        "spec": {"virtualRouters": [{"localASN": 65001, "neighbors": [
            {"peerAddress": "10.0.0.1/32", "peerASN": 65000, "authSecretRef": secret}]}]},
    });
    heard(id(POLICIES), object)
}

struct Told {
    replica: Replica,
    resources: Resources,
}

impl Told {
    fn new() -> Self {
        let mut replica = Replica::new("https://api".into(), "kube-system", "node1");
        for kind in (0..KINDS.len()).filter(|kind| !KINDS[*kind].is_by_name) {
            replica.expect(&id(kind));
        }
        Self {
            replica,
            resources: Resources::default(),
        }
    }

    fn hear(&mut self, heard: Heard) -> bool {
        self.replica
            .hear(heard, Timestamp::UNIX_EPOCH, &mut self.resources)
    }

    fn list(&mut self, kind: usize, objects: Vec<Heard>) {
        self.hear(Heard::Listing(id(kind)));
        for object in objects {
            self.hear(object);
        }
        self.hear(Heard::Listed(id(kind)));
    }

    fn services(&self) -> Vec<String> {
        self.resources
            .services
            .keys()
            .map(ToString::to_string)
            .collect()
    }

    fn reasons(&self) -> Vec<&str> {
        self.resources
            .conditions
            .iter()
            .map(|c| c.reason.as_str())
            .collect()
    }
}

#[test]
fn it_is_complete_when_every_watch_has_told_or_cannot() {
    let mut told = Told::new();
    for kind in [0, 1, 2] {
        assert!(!told.replica.is_complete());
        told.list(kind, vec![]);
    }
    assert!(!told.replica.is_complete());
    for kind in POLICIES..KINDS.len() {
        told.hear(Heard::NotInstalled(id(kind)));
    }
    assert!(told.replica.is_complete());
    assert!(
        told.reasons().is_empty(),
        "a kind that is not installed is no fault"
    );
}

#[test]
fn a_list_removes_what_it_lacks_and_only_when_it_is_whole() {
    let mut told = Told::new();
    told.list(SERVICES, vec![service("a", 1), service("b", 1)]);

    told.hear(Heard::Listing(id(SERVICES)));
    assert!(!told.hear(service("b", 1)), "the same again is no change");
    assert_eq!(told.services(), ["default/a", "default/b"]);
    assert!(told.hear(Heard::Listed(id(SERVICES))));
    assert_eq!(told.services(), ["default/b"]);

    assert!(told.hear(Heard::Gone(id(SERVICES), name("default", "b"))));
    assert!(told.services().is_empty());
}

#[test]
fn an_object_that_broke_keeps_its_version_and_says_so() {
    let mut told = Told::new();
    told.list(SERVICES, vec![service("a", 80)]);

    assert!(told.hear(service("a", "many")));
    assert!(!told.hear(service("a", "many")));

    assert_eq!(told.services(), ["default/a"]);
    let [condition] = &told.resources.conditions[..] else {
        panic!("{:?}", told.resources.conditions);
    };
    assert_eq!(condition.object, "Service default/a");
    assert_eq!(condition.origin, "https://api");
    assert!(
        condition
            .message
            .ends_with("; the version read before stays in force")
    );

    assert!(told.hear(service("a", 80)));
    assert!(told.reasons().is_empty());
}

#[test]
fn a_server_that_is_away_changes_nothing_but_what_is_said() {
    let mut told = Told::new();
    told.list(SERVICES, vec![service("a", 1)]);

    assert!(told.hear(Heard::NoContact("connection refused".to_owned())));
    assert!(!told.hear(Heard::NoContact("no answer".to_owned())));

    assert_eq!(told.services(), ["default/a"]);
    assert_eq!(told.reasons(), ["NoApiServer"]);
    let message = &told.resources.conditions[0].message;
    assert!(
        message.contains("since 1970-01-01T00:00:00Z: connection refused"),
        "{message}"
    );
    assert!(told.hear(Heard::Contact));
    assert!(told.reasons().is_empty());
}

#[test]
fn a_kind_in_an_unknown_version_says_which_are_read() {
    let mut told = Told::new();
    let mut kinds = KINDS.iter();
    let overrides = kinds.position(|kind| kind.name == "CiliumBGPNodeConfigOverride");
    let overrides = id(overrides.unwrap());

    told.hear(Heard::UnknownVersion(
        overrides.clone(),
        vec!["v3".to_owned()],
    ));

    assert_eq!(told.reasons(), ["UnknownVersion"]);
    assert_eq!(
        told.resources.conditions[0].message,
        "no BGP session is configured by it: the API server has it in version v3, and v2 or v2alpha1 is read; serve \
         such a version too (spec.versions of the CustomResourceDefinition ciliumbgpnodeconfigoverrides.cilium.io), \
         or update Fairlead"
    );
    told.hear(Heard::NotInstalled(overrides));
    assert!(told.reasons().is_empty());
}

#[test]
fn a_kind_that_is_forbidden_says_which_feature_it_costs_and_the_rest_works() {
    let mut told = Told::new();
    told.list(SERVICES, vec![service("a", 1)]);

    told.hear(Heard::Forbidden(
        id(2),
        "endpointslices is forbidden".to_owned(),
    ));

    assert_eq!(told.services(), ["default/a"]);
    assert_eq!(
        told.resources.conditions[0].message,
        "services have no backends: endpointslices is forbidden; grant list and watch on endpointslices"
    );
    told.list(2, vec![]);
    assert!(told.reasons().is_empty());
}

#[test]
fn a_secret_is_watched_while_a_policy_names_it() {
    let mut told = Told::new();
    told.list(POLICIES, vec![policy(Some("password"))]);
    let secret = WatchId {
        kind: SECRET,
        name: Some(name("kube-system", "password")),
    };
    assert_eq!(told.replica.named().iter().collect::<Vec<_>>(), [&secret]);

    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "kube-system", "name": "password"},
    });
    told.hear(heard(secret.clone(), object));
    assert_eq!(told.resources.secrets.len(), 1);

    told.hear(policy(None));
    assert!(told.replica.named().is_empty());
    told.replica.forget(&secret, &mut told.resources);
    assert!(told.resources.secrets.is_empty());
}

#[test]
fn a_snapshot_is_in_force_until_the_server_has_told_all_and_what_it_lacks_goes_then() {
    let mut before = Told::new();
    before.list(SERVICES, vec![service("a", 1), service("b", 1)]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    snapshot::store(&file, &before.replica.objects(), Timestamp::UNIX_EPOCH).unwrap();

    let mut told = Told::new();
    let snapshot = snapshot::load(&file).unwrap().unwrap();
    told.replica.restore(snapshot, &mut told.resources);
    assert_eq!(told.services(), ["default/a", "default/b"]);
    assert_eq!(told.reasons(), ["OldState"]);
    told.hear(Heard::NoContact("connection refused".to_owned()));
    let message = &told.resources.conditions[0].message;
    assert!(
        message.ends_with("the state of the snapshot of 1970-01-01T00:00:00Z is in force"),
        "{message}"
    );

    for kind in [0, 2].into_iter().chain(POLICIES..KINDS.len()) {
        told.list(kind, vec![]);
    }
    told.list(SERVICES, vec![service("b", 2)]);
    assert_eq!(told.services(), ["default/b"]);
    assert!(told.reasons().is_empty());
}

fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

#[test]
fn this_nodes_share_of_pools_is_watched_while_something_announces_it() {
    const ADVERTISEMENTS: usize = 8;
    const POOLS: usize = 10;
    assert_eq!(KINDS[ADVERTISEMENTS].name, "CiliumBGPAdvertisement");
    assert_eq!(KINDS[POOLS].name, "CiliumPodIPPool");
    let advertisement = |of: &str| {
        let object = json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumBGPAdvertisement", "metadata": {"name": "a"},
            "spec": {"advertisements": [{"advertisementType": of}]},
        });
        heard(id(ADVERTISEMENTS), object)
    };
    let own = WatchId {
        kind: CILIUM_NODE,
        name: Some(ObjectName {
            namespace: String::new(),
            name: "node1".to_owned(),
        }),
    };
    let mut told = Told::new();
    for kind in (0..KINDS.len()).filter(|kind| !KINDS[*kind].is_by_name) {
        told.list(kind, Vec::new());
    }
    told.hear(advertisement("PodCIDR"));
    assert!(!told.replica.named().contains(&own));
    told.hear(advertisement("CiliumPodIPPool"));
    assert!(told.replica.named().contains(&own));

    // Where Cilium is not, its node is not waited for.
    told.replica.expect(&own);
    assert!(!told.replica.is_complete());
    told.hear(Heard::NotInstalled(own.clone()));
    assert!(told.replica.is_complete());

    let mut node = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": "node1"},
        "spec": {"addresses": [], "ipam": {"pools": {
            "requested": [{"pool": "blue"}],
            "allocated": [{"pool": "blue", "cidrs": ["10.20.1.0/24"]}]}}},
        "status": {"ipam": {}},
    });
    (KINDS[CILIUM_NODE].trim)(&mut node);
    let spec =
        json!({"ipam": {"pools": {"allocated": [{"pool": "blue", "cidrs": ["10.20.1.0/24"]}]}}});
    assert_eq!((&node["spec"], &node["status"]), (&spec, &Value::Null));
    told.hear(heard(own.clone(), node));
    assert_eq!(told.resources.cilium_nodes.len(), 1);

    let mut pool = json!({
        "apiVersion": "cilium.io/v2alpha1", "kind": "CiliumPodIPPool", "metadata": {"name": "blue"},
        "spec": {"ipv4": {}}, "status": {},
    });
    (KINDS[POOLS].trim)(&mut pool);
    assert_eq!(
        (&pool["spec"], &pool["status"]),
        (&Value::Null, &Value::Null)
    );
    told.hear(heard(id(POOLS), pool));
    assert_eq!(told.resources.pod_pools.len(), 1);
    told.hear(advertisement("PodCIDR"));
    assert!(!told.replica.named().contains(&own));
    told.replica.forget(&own, &mut told.resources);
    assert!(told.resources.cilium_nodes.is_empty());
}
