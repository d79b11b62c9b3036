//! Pools of pod addresses: routers hear what a node has of those that an advertisement selects.

use anyhow::{Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::netns::wait_for;
use serde_json::json;

use super::versions::definition;

/// Of both families: what node1 has of the pool at first, and what it is given besides.
const FIRST: [&str; 2] = ["10.61.1.0/24", "fd61::1:0/112"];
const SECOND: [&str; 2] = ["10.61.2.0/24", "fd61::2:0/112"];

/// Told once the kinds are there, as Cilium's operator gives and takes, until the pool goes.
pub fn what_a_node_has_of_a_pool_is_told_as_it_changes(cluster: &Cluster) -> Result<()> {
    cluster.apply(&definition("CiliumPodIPPool", &[("v2alpha1", true)]))?;
    cluster.apply(&definition("CiliumNode", &[("v2", true)]))?;
    let established = ["wait", "--for=condition=Established", "crd"];
    let kinds = ["ciliumpodippools.cilium.io", "ciliumnodes.cilium.io"];
    cluster.kubectl(&[&established[..], &kinds].concat())?;
    let advertisement = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumBGPAdvertisement",
        "metadata": {"name": "pools", "labels": {"advertise": "bgp"}},
        "spec": {"advertisements": [{
            "advertisementType": "CiliumPodIPPool", "selector": {"matchLabels": {"colour": "blue"}},
        }]},
    });
    cluster.apply(&advertisement.to_string())?;
    put_pool(cluster, "blue")?;
    put_shares(cluster, &[FIRST])?;
    // Who asked for kinds that were not there asks again within 15 s.
    told(cluster, FIRST, true, 60)?;
    told(cluster, SECOND, false, 1)?;

    put_shares(cluster, &[FIRST, SECOND])?;
    told(cluster, SECOND, true, 20)?;
    put_shares(cluster, &[SECOND])?;
    told(cluster, FIRST, false, 20)?;
    told(cluster, SECOND, true, 1)?;

    put_pool(cluster, "red")?;
    told(cluster, SECOND, false, 20)?;
    put_pool(cluster, "blue")?;
    told(cluster, SECOND, true, 20)?;
    cluster.kubectl(&["delete", "ciliumpodippool", "blue"])?;
    told(cluster, SECOND, false, 20)?;

    cluster.kubectl(&["delete", "ciliumbgpadvertisement", "pools"])?;
    cluster.kubectl(&[&["delete", "crd"], &kinds[..]].concat())?;
    Ok(())
}

fn put_pool(cluster: &Cluster, colour: &str) -> Result<()> {
    let pool = json!({
        "apiVersion": "cilium.io/v2alpha1", "kind": "CiliumPodIPPool",
        "metadata": {"name": "blue", "labels": {"colour": colour}},
        "spec": {
            "ipv4": {"cidrs": ["10.61.0.0/16"], "maskSize": 24},
            "ipv6": {"cidrs": ["fd61::/104"], "maskSize": 112},
        },
    });
    cluster.apply(&pool.to_string())
}

/// As Cilium's operator writes what node1 has of the pool; another node has the like of another pool.
fn put_shares(cluster: &Cluster, shares: &[[&str; 2]]) -> Result<()> {
    for (node, pool) in [("node1", "blue"), ("node3", "green")] {
        let own = json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": node},
            "spec": {"ipam": {"pools": {"allocated": [{"pool": pool, "cidrs": shares.concat()}]}}},
        });
        cluster.apply(&own.to_string())?;
    }
    Ok(())
}

/// Waits until the router of node1's rack has these prefixes by that node alone, or has them no more.
fn told(cluster: &Cluster, prefixes: [&str; 2], is_wanted: bool, seconds: u64) -> Result<()> {
    for (prefix, family) in prefixes.into_iter().zip(["ipv4", "ipv6"]) {
        wait_for(&format!("{prefix}: told {is_wanted}"), seconds, || {
            let route = cluster.frr("tor0", &format!("show bgp {family} unicast {prefix}"))?;
            let paths = route["paths"].as_array().cloned().unwrap_or_default();
            let by: Vec<_> = paths.iter().map(|path| &path["peer"]["routerId"]).collect();
            let wanted = is_wanted.then_some("10.10.0.11");
            ensure!(by == Vec::from_iter(wanted), "{route}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}
