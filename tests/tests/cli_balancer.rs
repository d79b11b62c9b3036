//! What a person reads who asks about backends, flows and packets and is wrong: one line that says what, where and
//! what to do, and an exit code.

use fairlead_tests::host::{ERROR, NO, YES, host};

#[test]
fn what_is_no_backend_is_said_with_what_one_is() {
    let Some(host) = host() else { return };
    let _agent = host.agent();

    host.refuses(
        "dpctl backends drain 10.0.0.9:80",
        NO,
        "no service has a backend 10.0.0.9:80; `dpctl backends list` shows them",
    );
    host.refuses("dpctl backends undrain 10.0.0.9", NO, "nothing is drained");
    host.refuses(
        "dpctl backends list --service default/nope",
        NO,
        "no service is called \"default/nope\"; `dpctl services` lists them",
    );
    for (line, why) in [
        (
            "dpctl backends drain web1",
            "it is an address or an address and a port, such as 10.0.0.1, 10.0.0.1:80 or [fd00::1]:80",
        ),
        (
            "dpctl backends drain 10.0.0.1 --service web",
            "it is NAMESPACE/NAME, as `dpctl services` prints it",
        ),
        (
            "dpctl backends drain 10.0.0.1 --wait --idle soon",
            "it is a time such as 10s or 5m",
        ),
    ] {
        let said = host.say(line);
        assert_eq!(said.code, ERROR, "{line}");
        assert!(said.err.contains(why), "{line}: {}", said.err);
    }
    // Nothing that was refused is kept.
    assert!(!host.dir.path().join("state").exists());
}

#[test]
fn a_packet_that_nobody_meets_is_said_with_who_would() {
    let Some(host) = host() else { return };
    let packet = "--src 192.0.2.7:40000 --dst 203.0.113.10:80";
    host.refuses(
        &format!("dpctl trace --in eth0 {packet} --pin-path BPF/nowhere"),
        ERROR,
        "the agent does not answer; the tables are read by their pins, so nothing is called by its name\n\
         dpctl: no tables are pinned under BPF/nowhere; an agent makes them (`fairlead run`), another place is \
         named by --pin-path or FAIRLEAD_PIN_PATH",
    );
    let _agent = host.agent();

    host.refuses(
        &format!("dpctl trace --in eth0 {packet}"),
        ERROR,
        "dpctl: no program of ours meets packets that come in by \"eth0\"; one does on no device",
    );
    let said = host.say(&format!("dpctl trace --in eth0 {packet} --proto icmp"));
    assert_eq!(said.code, ERROR);
    assert!(
        said.err.contains("[possible values: tcp, udp]"),
        "{}",
        said.err
    );
}

#[test]
fn without_services_there_is_nothing_to_list_and_that_is_fine() {
    let Some(host) = host() else { return };
    let _agent = host.agent();

    for (line, words) in [
        (
            "dpctl backends",
            "no backends; EndpointSlice documents name them\n",
        ),
        (
            "dpctl flows list --limit 5",
            "no flow is remembered: only flows that this node translates are, and those that begin while a ring changes\n",
        ),
    ] {
        let said = host.say(line);
        assert_eq!((said.code, said.err.as_str()), (YES, words), "{line}");
    }
}

#[test]
fn a_health_check_that_cannot_be_read_is_a_fault_of_its_service() {
    let Some(host) = host() else { return };
    host.write(
        "m/web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n    \
         fairlead.io/health-check: http interval=fast\nspec:\n  type: LoadBalancer\n  ports:\n  - port: 80\n\
         status: {loadBalancer: {ingress: [{ip: 203.0.113.10}]}}\n",
    );
    let said = host.say("fairlead check-config --manifests DIR/m");

    assert_eq!(said.code, NO);
    let fault = "Service default/web (HealthCheckInvalid): annotation fairlead.io/health-check: \
                 interval=fast cannot be: it must be a time from 100ms to 1h; until then its backends are not \
                 checked";
    assert!(said.out.contains(fault), "{}", said.out);
}
