//! Pods that another CNI plugin has joined: to the datapath they are what the kernel's stack reaches.

use anyhow::{Result, ensure};
use fairlead_tests::lab::traffic::{self, fetch_many};
use fairlead_tests::lab::{Lab, Plan};
use fairlead_tests::netns::{Netns, veth, wait_for};
use fairlead_tests::root;

const PORT: u16 = 8080;
const SERVICE: [&str; 2] = ["203.0.113.30", "2001:db8:5e::30"];
/// Outside of the node's pod CIDRs: what leaves is not translated, and only the node itself knows the way.
const GATEWAY: [&str; 2] = ["10.77.0.1", "fd77::1"];
const CLIENT: [&str; 2] = ["10.77.0.2", "fd77::2"];
const SERVER: [&str; 2] = ["10.77.0.3", "fd77::3"];

/// A pod as the plugin `ptp` joins it: a route per address, and no sign of who did it.
fn pod(lab: &Lab, name: &str, addresses: [&str; 2]) -> Result<Netns> {
    let (node, pod) = (&lab.nodes[0].netns, Netns::unique(name)?);
    veth((node, name), (&pod, "eth0"))?;
    for (family, length) in [32, 128].into_iter().enumerate() {
        let (address, gateway) = (addresses[family], GATEWAY[family]);
        let nodad = if length == 128 { " nodad" } else { "" };
        node.ip(&format!("addr add {gateway}/{length} dev {name}{nodad}"))?;
        node.ip(&format!("route add {address}/{length} dev {name}"))?;
        pod.ip(&format!("addr add {address}/{length} dev eth0{nodad}"))?;
        pod.ip(&format!("route add {gateway}/{length} dev eth0"))?;
        pod.ip(&format!("route add default via {gateway}"))?;
    }
    Ok(pod)
}

/// Only the node of its backend announces it, so that is where all requests come to.
fn service() -> String {
    let [v4, v6] = SERVICE;
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: foreign, labels: {{announce: bgp}}}}\nspec:\n  \
         type: LoadBalancer\n  externalTrafficPolicy: Local\n  ports: [{{port: 80}}]\n\
         status: {{loadBalancer: {{ingress: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}}}\n"
    );
    for (address, kind) in SERVER.into_iter().zip(["IPv4", "IPv6"]) {
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: foreign-{}, \
             labels: {{kubernetes.io/service-name: foreign}}}}\naddressType: {kind}\nports: [{{port: {PORT}}}]\n\
             endpoints: [{{addresses: ['{address}'], nodeName: node1}}]\n",
            kind.to_lowercase()
        );
    }
    text
}

#[test]
fn a_pod_beside_the_backend_hears_the_service_as_everybody_does() {
    if !root::is_root() {
        return;
    }
    let mut lab = Lab::up("fl-foreign").unwrap();
    let client = pod(&lab, "client", CLIENT).unwrap();
    let server = pod(&lab, "server", SERVER).unwrap();
    let log = lab.dir().join("foreign.log");
    let _server = traffic::serve(&server, "foreign", PORT, &log).unwrap();
    lab.start_agents().unwrap();
    lab.wait_until_settled().unwrap();
    // The router does not tell a node what the node told it.
    for (service, router) in SERVICE.into_iter().zip(Plan(1).router()) {
        let way = format!("route add {service} via {router}");
        lab.nodes[0].netns.ip(&way).unwrap();
    }
    for node in &lab.nodes {
        node.put("foreign.yaml", &service()).unwrap();
    }

    for (family, service) in SERVICE.into_iter().enumerate() {
        // From beyond the router, and from the same node: by the router, for no socket program is here.
        for (from, own) in [(&lab.client, None), (&client, Some(CLIENT[family]))] {
            let what = format!("{service} to answer {}", from.name());
            let seen = wait_for(&what, 20, || {
                let (servers, seen) = fetch_many(from, service, 80, 5)?;
                ensure!(servers.keys().eq(["foreign"]), "{servers:?}");
                Ok(Some(seen))
            })
            .unwrap();
            if let Some(own) = own {
                assert!(seen.iter().all(|seen| seen.to_string() == own), "{seen:?}");
            }
        }
    }
    // No program of ours routes what pods send.
    let status = lab.nodes[0].ask(&["status"]).unwrap();
    let attached = |device: &str| -> Vec<String> {
        let all = status["attachments"].as_array().into_iter().flatten();
        all.filter(|one| one["device"] == device)
            .map(|one| one["program"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(attached("client"), ["tc_to_pod"], "{status}");
    assert_eq!(attached("server"), ["tc_to_pod"], "{status}");
}
