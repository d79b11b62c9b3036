//! The ground that the other namespace tests stand on: namespaces, and links between them.

use fairlead_tests::netns::{Netns, veth};
use fairlead_tests::root::is_root;

#[test]
fn two_namespaces_reach_each_other_and_vanish() {
    if !is_root() {
        return;
    }
    let a = Netns::unique("fl-pair").unwrap();
    let b = Netns::unique("fl-pair").unwrap();
    veth((&a, "eth0"), (&b, "eth0")).unwrap();
    a.ip("addr add 10.9.0.1/24 dev eth0").unwrap();
    b.ip("addr add 10.9.0.2/24 dev eth0").unwrap();

    a.run("ping -c1 -W2 10.9.0.2").unwrap();

    let path = a.path();
    drop(a);
    assert!(!path.exists());
}
