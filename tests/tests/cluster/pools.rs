//! Addresses from pools, while those who give them are killed in turn.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::netns::wait_for;
use nix::sys::signal::{Signal, kill};

use super::{NODES, agent_on, dpctl};

/// How many services want an address, and how many are there.
const SERVICES: usize = 24;
const ADDRESSES: usize = 20;

/// Two leaders killed in turn while services come: each address is given once, and the rest is told why it has none.
pub fn addresses_are_given_once_whoever_leads(cluster: &Cluster) -> Result<()> {
    let pool = format!(
        "apiVersion: cilium.io/v2\nkind: CiliumLoadBalancerIPPool\nmetadata: {{ name: many }}\nspec:\n  \
         blocks: [{{ start: 198.51.100.1, stop: 198.51.100.{ADDRESSES} }}]\n  \
         serviceSelector: {{ matchLabels: {{ pool: many }} }}\n"
    );
    // The cluster's own pool would serve them, too.
    let keep = r#"{"spec":{"serviceSelector":{"matchLabels":{"announce":"bgp"}}}}"#;
    cluster.kubectl(&[
        "patch",
        "ciliumloadbalancerippool",
        "public",
        "--type=merge",
        "-p",
        keep,
    ])?;
    cluster.apply(&pool)?;
    let mut leaders = Vec::new();
    for batch in 0..3 {
        let of_batch = (0..SERVICES).filter(|number| number % 3 == batch);
        let documents: Vec<_> = of_batch.map(service).collect();
        cluster.apply(&documents.join("---\n"))?;
        if batch < 2 {
            let leader = leader(cluster)?;
            kill(agent_on(cluster, &leader)?, Signal::SIGKILL)?;
            leaders.push(leader);
        }
    }
    let held = wait_for("every service to have an address or a reason", 90, || {
        let held = held(cluster)?;
        let answered = held.values().filter(|(_, reason)| !reason.is_empty());
        ensure!(answered.count() == SERVICES, "{held:?}; led: {leaders:?}");
        Ok(Some(held))
    })?;
    let mut by_address = BTreeMap::<&str, Vec<&str>>::new();
    for (name, (address, reason)) in &held {
        if address.is_empty() {
            ensure!(reason == "out_of_ips", "{name}: {reason}");
        } else {
            by_address.entry(address).or_default().push(name);
        }
    }
    ensure!(by_address.len() == ADDRESSES, "{held:?}");
    ensure!(
        by_address.values().all(|names| names.len() == 1),
        "{by_address:?}"
    );

    let leader = leader(cluster)?;
    // An agent that was killed often is started again by its kubelet after 40 s.
    wait_for("every node to know who gives them", 90, || {
        for node in NODES {
            let status = dpctl(cluster, node, &["status", "-o", "json"])?;
            let ipam = &status["loadBalancerIPAM"];
            ensure!(ipam["leader"] == leader, "{node}: {ipam}");
            let of = |what: &str| ipam["services"][what].as_u64();
            let lacking = of("all").zip(of("good")).map(|(all, good)| all - good);
            let known = (SERVICES - ADDRESSES) as u64;
            let expected = (node == leader).then_some(known);
            ensure!(lacking == expected, "{node}: {ipam}");
        }
        Ok(Some(()))
    })?;

    // Who gives its address back makes room.
    let (lucky, _) = held
        .iter()
        .find(|(_, (address, _))| !address.is_empty())
        .context("nobody has one")?;
    cluster.kubectl(&["delete", "service", lucky])?;
    wait_for("the next one to have it", 30, || {
        let with = self::held(cluster)?;
        let count = with
            .values()
            .filter(|(address, _)| !address.is_empty())
            .count();
        ensure!(count == ADDRESSES, "{with:?}");
        Ok(Some(()))
    })?;
    cluster.kubectl(&["delete", "service", "-l", "pool=many"])?;
    cluster.kubectl(&["delete", "ciliumloadbalancerippool", "many"])?;
    Ok(())
}

fn service(number: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: many-{number}, labels: {{ pool: many }} }}\n\
         spec: {{ type: LoadBalancer, ports: [{{ port: 80 }}], selector: {{ app: none }} }}\n"
    )
}

/// The node whose agent leads, once one does.
fn leader(cluster: &Cluster) -> Result<String> {
    let holder = "jsonpath={.spec.holderIdentity}";
    let lease = [
        "-n",
        "kube-system",
        "get",
        "lease",
        "fairlead-lb-ipam",
        "-o",
        holder,
    ];
    wait_for("a leader that lives", 60, || {
        let leader = cluster.kubectl(&lease)?;
        ensure!(!leader.is_empty(), "nobody holds the lease");
        agent_on(cluster, &leader)?;
        Ok(Some(leader))
    })
    // Long enough for some of the services.
    .inspect(|_| std::thread::sleep(Duration::from_millis(300)))
}

/// Of each service its address, and why it has it or not.
fn held(cluster: &Cluster) -> Result<BTreeMap<String, (String, String)>> {
    let of_each = "jsonpath={range .items[*]}{.metadata.name} {.status.loadBalancer.ingress[0].ip} \
                   {.status.conditions[?(@.type==\"cilium.io/IPAMRequestSatisfied\")].reason}{\"\\n\"}{end}";
    let text = cluster.kubectl(&["get", "services", "-l", "pool=many", "-o", of_each])?;
    let read = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let name = words.next().filter(|name| !name.is_empty())?;
        Some((name, (words.next()?, words.next()?)))
    };
    Ok(text.lines().filter_map(read).collect())
}
