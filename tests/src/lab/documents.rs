//! The documents that a person would write for this lab: FRR's, the agents', the cluster's.

use std::path::Path;

use super::{Plan, SERVICE, SERVICE_PORT};

/// The router: eBGP with both nodes, equal paths used together.
pub fn frr() -> String {
    let mut neighbors = String::new();
    let mut families = [String::new(), String::new()];
    for plan in [Plan(1), Plan(2)] {
        let [address, _] = plan.addresses();
        neighbors += &format!(
            " neighbor {address} remote-as {}\n neighbor {address} description {}\n \
             neighbor {address} timers connect 1\n neighbor {address} advertisement-interval 0\n",
            plan.asn(),
            plan.name(),
        );
        for family in &mut families {
            *family += &format!("  neighbor {address} activate\n");
        }
    }
    let [v4, v6] = families;
    format!(
        "frr defaults datacenter\nhostname router\nlog stdout\n!\nrouter bgp 65000\n \
         bgp router-id 10.0.0.1\n no bgp ebgp-requires-policy\n no bgp network import-check\n \
         bgp bestpath as-path multipath-relax\n bgp graceful-restart stalepath-time 60\n\
         {neighbors} !\n address-family ipv4 unicast\n  redistribute connected\n  \
         maximum-paths 8\n{v4} exit-address-family\n !\n address-family ipv6 unicast\n  \
         redistribute connected\n  maximum-paths 8\n{v6} exit-address-family\nexit\n!\nend\n"
    )
}

/// The agent's configuration.
pub fn config(plan: Plan, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "nodeName: {}\ndevices:\n  - name: eth0\n    role: uplink\n\
         bpf:\n  pinPath: {dir}/bpf/fairlead\nsocket: {dir}/agent.sock\nstateDir: {dir}/state\nmanifests: {dir}/manifests\n\
         # Inside, nothing is translated.\nipv4NativeRoutingCIDR: 10.0.0.0/8\n\
         masquerade:\n  enabled: true\n  egressAddress: {}\n\
         bgp:\n  # What the router says is believed, but for martians and our own prefixes.\n  import: all\n\
         loadBalancer:\n  drainWindow: 30s\n",
        plan.name(),
        plan.egress(),
    )
}

/// The cluster's documents: the same for every node.
pub fn manifests(ready: &[u8]) -> Vec<(&'static str, String)> {
    vec![
        ("nodes.yaml", nodes()),
        ("service.yaml", service(ready)),
        ("bgp.yaml", policies()),
    ]
}

fn nodes() -> String {
    [Plan(1), Plan(2)]
        .map(|plan| {
            let [v4, v6] = plan.addresses();
            let [pods4, pods6] = plan.pod_cidrs();
            format!(
                "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    rack: rack{n}\n\
                 spec:\n  podCIDR: {pods4}\n  podCIDRs: [\"{pods4}\", \"{pods6}\"]\n\
                 status:\n  addresses:\n    - {{ type: InternalIP, address: {v4} }}\n    \
                 - {{ type: InternalIP, address: \"{v6}\" }}\n    - {{ type: Hostname, address: {name} }}\n",
                name = plan.name(),
                n = plan.0,
            )
        })
        .join("---\n")
}

fn service(ready: &[u8]) -> String {
    let [v4, v6] = SERVICE;
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace: default\n  labels:\n    \
         announce: bgp\nspec:\n  type: LoadBalancer\n  ports:\n    - {{ name: http, port: {SERVICE_PORT}, \
         targetPort: {SERVICE_PORT}, protocol: TCP }}\nstatus:\n  loadBalancer:\n    ingress:\n      \
         - ip: {v4}\n      - ip: \"{v6}\"\n"
    );
    for (family, kind) in ["IPv4", "IPv6"].into_iter().enumerate() {
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
             name: web-{lower}\n  namespace: default\n  labels:\n    kubernetes.io/service-name: web\n\
             addressType: {kind}\nports:\n  - {{ name: http, port: {SERVICE_PORT}, protocol: TCP }}\n\
             endpoints:\n",
            lower = kind.to_lowercase(),
        );
        for plan in [Plan(1), Plan(2)] {
            text += &format!(
                "  - addresses: [\"{}\"]\n    nodeName: {}\n    conditions: {{ ready: {} }}\n",
                plan.web()[family],
                plan.name(),
                ready.contains(&plan.0),
            );
        }
    }
    text
}

fn policies() -> String {
    [Plan(1), Plan(2)]
        .map(|plan| {
            format!(
                "apiVersion: cilium.io/v2alpha1\nkind: CiliumBGPPeeringPolicy\nmetadata:\n  name: rack{n}\n\
                 spec:\n  nodeSelector:\n    matchLabels:\n      rack: rack{n}\n  virtualRouters:\n    \
                 - localASN: {asn}\n      exportPodCIDR: true\n      serviceSelector:\n        \
                 matchLabels:\n          announce: bgp\n      neighbors:\n        \
                 - peerAddress: {peer}/32\n          peerASN: 65000\n          \
                 connectRetryTimeSeconds: 1\n          holdTimeSeconds: 9\n          \
                 keepAliveTimeSeconds: 3\n          gracefulRestart:\n            enabled: true\n            \
                 restartTimeSeconds: 60\n",
                n = plan.0,
                asn = plan.asn(),
                peer = plan.router()[0],
            )
        })
        .join("---\n")
}
