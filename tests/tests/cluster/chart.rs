//! The chart as `helm` sees it, without a cluster.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::Context as _;
use fairlead_control::source::kubernetes::kinds::KINDS;
use fairlead_tests::cluster::Cluster;
use fairlead_tests::lab::binary;
use fairlead_tests::netns::run;

/// Where it lies.
pub const CHART: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../control/packaging/helm/fairlead"
);

/// What `docs/kubernetes.md` shows.
const SETS: [&[&str]; 10] = [
    &[],
    &["config.kubernetes.apiServer=https://10.0.0.10:6443"],
    &["config.kubernetes.loadBalancerIPAM=false"],
    &["cni.enabled=true"],
    &[
        "cni.enabled=true",
        "cni.binDir=/usr/lib/cni",
        "config.kubernetes.cni.mtu=9000",
    ],
    &["image.repository=registry.example/fairlead", "image.tag=v1"],
    &[
        "listen.address=0.0.0.0",
        "metrics.podMonitor.enabled=true",
        "metrics.prometheusRule.enabled=true",
    ],
    &["listen.address=::", "metrics.podMonitor.enabled=true"],
    &[
        "rbac.secretNames={tor0,tor1}",
        "config.bgp.secretsNamespace=network",
    ],
    &[
        "serviceAccount.create=false",
        "serviceAccount.name=fairlead",
        "rbac.create=false",
    ],
];

fn helm(words: &[&str], sets: &[&str]) -> anyhow::Result<String> {
    let mut helm = Command::new(binary("xtask")?);
    helm.args(["cluster", "helm", "--"]).args(words).arg(CHART);
    for set in sets {
        helm.args(["--set", set]);
    }
    run(&mut helm)
}

#[test]
fn it_holds_by_lint_and_template_for_every_documented_set_of_values() {
    for set in SETS {
        helm(&["lint", "--strict"], set).unwrap();
        let text = helm(&["template", "fl", "--namespace", "kube-system"], set).unwrap();
        assert!(text.contains("kind: DaemonSet"), "{set:?}: {text}");
    }
}

/// A server-side dry run of what each documented set of values renders. Kinds that a cluster gets from elsewhere are
/// left out: there is nobody who could check them.
pub fn it_is_accepted_for_every_documented_set_of_values(cluster: &Cluster) -> anyhow::Result<()> {
    // Where one of them has its Secrets.
    cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: { name: network }\n")?;
    for set in SETS {
        let template = ["template", "fairlead", "--namespace", "kube-system"];
        let text = helm(&[&template[..], &["--include-crds"]].concat(), set)?;
        let own: Vec<_> = text
            .split("\n---\n")
            .filter(|document| !document.contains("apiVersion: monitoring.coreos.com/"))
            .collect();
        let how = [
            "--server-side",
            "--dry-run=server",
            "--force-conflicts",
            "--validate=strict",
        ];
        cluster
            .apply_as(&how, &own.join("\n---\n"))
            .with_context(|| format!("{set:?}"))?;
    }
    Ok(())
}

#[test]
fn mistakes_are_refused_with_what_is_wrong() {
    // Nothing that the command line says already: an error repeats it.
    for (set, said) in [
        (
            "devices=eth0",
            "additional properties 'devices' not allowed",
        ),
        (
            "metrics.podMonitor.enabled=true",
            "set listen.address to 0.0.0.0 or ::",
        ),
        ("listen.port=0", "at '/listen/port'"),
        ("config.devices[0].role=wan", "at '/config/devices/0/role'"),
        ("cni.binDir=opt/cni/bin", "at '/cni/binDir'"),
        (
            "config.kubernetes.cni.enabled=true",
            "config.kubernetes.cni.enabled: set cni.enabled",
        ),
        ("image.digest=latest", "at '/image/digest'"),
    ] {
        let error = helm(&["template", "fl"], &[set]).unwrap_err().to_string();
        assert!(error.contains(said), "{set}: {error}");
    }
}

/// The agent is told what the runtime is, and only the container that needs a folder has it.
#[test]
fn pods_get_their_network_from_it_when_that_is_wanted() {
    let template = ["template", "fl", "--namespace", "kube-system"];
    let without = helm(&template, &[]).unwrap();
    assert!(!without.contains("cni"), "{without}");
    let sets = [
        "cni.enabled=true",
        "cni.confDir=/etc/other",
        "config.kubernetes.cni.mtu=9000",
    ];
    let with = helm(&template, &sets).unwrap();
    for line in [
        "command: [/bin/fairlead-cni, install, /host/cni/bin]",
        "capabilities: { drop: [ALL] }",
        "- { name: cni-bin, mountPath: /host/cni/bin }",
        "hostPath: { path: \"/opt/cni/bin\", type: DirectoryOrCreate }",
        "- { name: cni-conf, mountPath: \"/etc/other\" }",
        "hostPath: { path: \"/etc/other\", type: DirectoryOrCreate }",
        "configDir: /etc/other",
        "mtu: 9000",
    ] {
        let count = with.matches(line).count();
        assert_eq!(count, 1, "{line}: {with}");
    }
}

/// No more and no less than what the agent watches, where it writes nothing.
#[test]
fn its_roles_grant_what_is_watched() {
    let rbac = ["template", "fl", "--show-only", "templates/rbac.yaml"];
    let text = helm(&rbac, &["config.kubernetes.loadBalancerIPAM=false"]).unwrap();
    let mut granted = BTreeSet::new();
    let mut groups = Vec::new();
    let mut is_list = false;
    for line in text.lines().map(str::trim) {
        let inline = |key: &str| {
            let list = line.strip_prefix(key)?.trim();
            Some(list.trim_matches(['[', ']']).split(", ").map(str::to_owned))
        };
        if let Some(of) = inline("- apiGroups:") {
            groups = of.map(|group| group.trim_matches('"').to_owned()).collect();
        } else if let Some(plurals) = inline("resources: [") {
            granted.extend(plurals.map(|plural| (groups.concat(), plural)));
        } else if line.starts_with("verbs:") {
            assert_eq!(line, "verbs: [list, watch]");
            is_list = false;
        } else if line == "resources:" {
            is_list = true;
        } else if let Some(plural) = line.strip_prefix("- ").filter(|_| is_list) {
            granted.insert((groups.concat(), plural.to_owned()));
        }
    }
    let watched: BTreeSet<_> = KINDS
        .iter()
        .map(|kind| (kind.group.to_owned(), kind.plural.to_owned()))
        .collect();
    assert_eq!(granted, watched);
}
