//! ADDs that are killed, at any moment.

use std::process::Child;
use std::time::Duration;

use fairlead_tests::netns::{Netns, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::runtime::{Runtime, new_pod, reaches, runtime};

fn start(runtime: &Runtime, id: &str, pod: &Netns, network: &serde_json::Value) -> Child {
    let namespace = pod.path().display().to_string();
    let variables = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", id),
        ("CNI_NETNS", &*namespace),
        ("CNI_IFNAME", "eth0"),
    ];
    runtime.start(&variables, &network.to_string())
}

/// `ip netns exec` becomes the plugin: it is the process that is killed, and what it started may go on.
fn end(mut child: Child) {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
}

#[test]
fn whenever_an_add_is_killed_del_or_gc_or_another_add_finds_what_it_left() {
    let Some(runtime) = runtime() else { return };
    let network = runtime.network();
    let (mut begun, mut made) = (0, 0);
    for round in 0..60_u64 {
        let pod = new_pod();
        let add = start(&runtime, "a", &pod, &network);
        std::thread::sleep(Duration::from_micros(500 * round));
        // The IPAM plugin may go on.
        end(add);
        begun += u32::from(!runtime.records().is_empty());
        made += u32::from(!runtime.links().is_empty());
        match round % 4 {
            0 => runtime.del("a", &pod),
            1 => {}
            2 => {
                let result = runtime.add("a", &pod);
                runtime.check("a", &pod, &result).done();
                reaches(&runtime.node, &result).unwrap();
                assert_eq!(runtime.taken().len(), 2);
                runtime.del("a", &pod);
            }
            // The pod's namespace goes first, and the link with it.
            _ => drop(pod),
        }
        if round % 2 == 1 {
            // GC leaves alone what an IPAM plugin is still at work on.
            wait_for("GC to find all of it", 5, || {
                runtime.collect(&[], network.clone()).done();
                Ok(runtime.records().is_empty().then_some(()))
            })
            .unwrap();
        }
        runtime
            .is_clean()
            .unwrap_or_else(|error| panic!("round {round}: {error:#}"));
    }
    // Or the moments were badly chosen.
    assert!(begun > 5 && made > 5, "{begun} begun, {made} with a link");
}

#[test]
fn gc_leaves_an_add_alone_that_is_under_way_and_del_waits_for_it() {
    let Some(runtime) = runtime() else { return };
    let pod = new_pod();
    let slow = runtime.dir.path().join("slow");
    let script = format!(
        "[ $CNI_COMMAND != ADD ] || {{ touch {0}; sleep 1; echo '{{\"ips\": [{{\"address\": \"10.77.0.5/24\"}}]}}'; }}",
        slow.display()
    );
    let network = runtime.network_of_script(&script);
    let add = start(&runtime, "a", &pod, &network);
    wait_for("the plugin to be asked", 5, || {
        Ok(slow.exists().then_some(()))
    })
    .unwrap();

    runtime.collect(&[], network.clone()).done();
    assert_eq!(runtime.records(), ["a:eth0"]);
    runtime.ask("DEL", "a", &pod, &network).done();

    assert!(add.wait_with_output().unwrap().status.success());
    runtime.is_clean().unwrap();
}
