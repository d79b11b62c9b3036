//! What a person reads who did something wrong: one line that says what, where and what to do, and an
//! exit code that a script can tell apart.
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use aya_obj::Object;
use fairlead_common::tables;
use fairlead_control::dataplane::load::OBJECT;
use fairlead_tests::host::{BAD_CONFIG, ERROR, NO, YES, host};
use fairlead_tests::lab::binary;
use fairlead_tests::netns::{Netns, STARTS, wait_for};
use fairlead_tests::process::Process;

/// Copies a program by another process: a child that another test starts meanwhile would hold a file that this one
/// writes, and it could not run ("text file busy").
fn copy(program: &str, to: &Path) {
    let program = binary(program).expect("it is built");
    let copied = Command::new("cp").arg(program).arg(to).status();
    assert!(copied.expect("cp starts").success(), "{}", to.display());
}

#[test]
fn a_configuration_that_cannot_be_read_says_which_line_and_ends_with_78() {
    let Some(host) = host() else { return };
    host.write("unknown.yaml", "nodeName: a\n\ndevcies: []\n");
    host.write("value.yaml", "devices:\n- {name: eth0, role: up}\n");
    host.write("twice.yaml", "nodeName: a\n---\nnodeName: b\n");
    std::fs::create_dir(host.dir.path().join("folder.yaml")).unwrap();

    for verb in ["run", "check-config", "cleanup"] {
        for (file, error) in [
            (
                "nowhere.yaml",
                "DIR/nowhere.yaml: cannot read the configuration: No such file or directory (os error 2)",
            ),
            (
                "folder.yaml",
                "DIR/folder.yaml: cannot read the configuration: Is a directory (os error 21)",
            ),
            (
                "twice.yaml",
                "DIR/twice.yaml: holds more than one document: keep one, without `---` between",
            ),
            (
                "value.yaml",
                "DIR/value.yaml:2: unknown variant `up`, expected one of uplink, lan\n  |\n\
                 1 | devices:\n2 | - {name: eth0, role: up}\n  |                      ^",
            ),
        ] {
            host.refuses(
                &format!("fairlead {verb} --config DIR/{file}"),
                BAD_CONFIG,
                &format!("fairlead: {error}"),
            );
        }
        let said = host.say(&format!("fairlead {verb} --config DIR/unknown.yaml"));
        let begins = "fairlead: DIR/unknown.yaml:3: unknown field `devcies`, expected one of nodeName, \
                      devices, ";
        let ends = "\n  |\n1 | nodeName: a\n2 |\n3 | devcies: []\n  | ^\n";
        assert_eq!(said.code, BAD_CONFIG);
        assert!(
            said.err.starts_with(begins) && said.err.ends_with(ends),
            "{said:?}"
        );
    }
    host.refuses(
        "fairlead run --device a-name-that-is-too-long",
        BAD_CONFIG,
        "fairlead: command line: devices[0].name: \"a-name-that-is-too-long\" is no interface name; \
         use 1 to 15 characters",
    );
}

#[test]
fn a_configuration_that_others_may_not_read_says_so() {
    let Some(host) = host() else { return };
    let file = host.write("config.yaml", "");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(host.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The program itself may lie where only root can go.
    let program = host.dir.path().join("program");
    copy("fairlead", &program);

    host.refuses(
        "setpriv --reuid 65534 --clear-groups DIR/program check-config --config DIR/config.yaml",
        BAD_CONFIG,
        "fairlead: DIR/config.yaml: cannot read the configuration: Permission denied (os error 13)",
    );
}

#[test]
fn each_fault_of_the_manifests_is_a_line_with_its_place_and_the_good_objects_count() {
    let Some(host) = host() else { return };
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\nstatus:\n  addresses: \
                [{type: InternalIP, address: 10.0.0.1}]\n";
    host.write("m/node.yaml", node);
    host.answers(
        "fairlead check-config --manifests DIR/m",
        YES,
        &["the configuration and the manifests in DIR/m are good"],
    );

    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nspec:\n  ports:\n  - port: 80\n";
    host.write("m/a.yaml", "kind: [\n");
    host.write(
        "m/b.yaml",
        &(service.replace("NAME", "odd") + "  bogus: 3\n---\n" + &service.replace("NAME", "good")),
    );
    host.write(
        "m/c.yaml",
        &service.replace("NAME", "bad").replace("80", "many"),
    );
    host.write("m/d.yaml", &service.replace("Service", "Servise"));
    host.write("m/notes.txt", "not a manifest");
    let faults = [
        "DIR/m/a.yaml:1: Unparsable: unclosed bracket '[' at line 1, column 7",
        "DIR/m/b.yaml:7: Service default/odd (UnknownField): spec.bogus: is not a field that \
         Fairlead knows; it has no effect",
        "DIR/m/c.yaml:6: Service default/bad (Unreadable): spec.ports[0].port: invalid type: string \
         \"many\", expected i32",
        "DIR/m/d.yaml:1: Servise NAME (UnknownKind): v1 Servise is not a kind that Fairlead reads; \
         it is ignored",
    ];
    host.answers("fairlead check-config --manifests DIR/m", NO, &faults);

    host.answers(
        "fairlead check-config --manifests DIR/m --node-name other",
        NO,
        &[
            &faults[..],
            &[
                "Node other (NodeMissing): this node has no Node object, so it has no pods and no \
               BGP; add one or set nodeName",
            ],
        ]
        .concat(),
    );
    host.answers(
        "fairlead check-config",
        YES,
        &["the configuration is good; it names no folder of manifests"],
    );
    host.refuses(
        "fairlead check-config --manifests DIR/nowhere",
        ERROR,
        "fairlead: listing the manifests in DIR/nowhere: No such file or directory (os error 2)",
    );
}

#[test]
fn without_words_both_programs_show_what_there_is_and_end_with_2() {
    let Some(host) = host() else { return };
    for (program, verb) in [("dpctl", "status"), ("fairlead", "check-config")] {
        let said = host.say(program);

        assert_eq!((said.code, said.out.as_str()), (ERROR, ""));
        assert!(said.err.contains("Usage: "), "{said:?}");
        assert!(said.err.contains(&format!("  {verb} ")), "{said:?}");
    }
    let said = host.say("dpctl nonsense");
    assert_eq!(said.code, ERROR);
    assert!(
        said.err
            .starts_with("error: unrecognized subcommand 'nonsense'\n"),
        "{said:?}"
    );
}

#[test]
fn without_an_agent_dpctl_says_that_none_answers_and_where_it_looked() {
    let Some(host) = host() else { return };
    for question in [
        "status",
        "services",
        "bgp peers",
        "bgp neighbor 10.0.0.1",
        "bgp received 10.0.0.1",
        "bgp advertised",
        "bgp policy",
        "bgp groups",
        "bgp events --follow",
        "bgp routes",
        "bgp why 10.1.0.0/16",
        "routes",
        "nat list",
        "drops",
    ] {
        host.refuses(
            &format!("dpctl {question}"),
            ERROR,
            "dpctl: cannot reach the agent at DIR/agent.sock: No such file or directory (os error 2); \
             is the agent running? (`fairlead run`; another socket: --socket or FAIRLEAD_SOCKET)",
        );
    }
    // A dead agent's socket.
    drop(std::os::unix::net::UnixListener::bind(host.socket()).unwrap());
    host.refuses(
        "dpctl status",
        ERROR,
        "dpctl: cannot reach the agent at DIR/agent.sock: Connection refused (os error 111); is the \
         agent running? (`fairlead run`; another socket: --socket or FAIRLEAD_SOCKET)",
    );
    for question in ["list", "dump SERVICES", "get BACKENDS 3"] {
        host.refuses(
            &format!("dpctl maps {question}"),
            ERROR,
            "dpctl: no tables are pinned under BPF/fairlead; an agent makes them (`fairlead run`), \
             another place is named by --pin-path or FAIRLEAD_PIN_PATH",
        );
    }
}

#[test]
fn an_agent_that_waits_for_its_api_server_stops_when_it_is_told_to() {
    let Some(host) = host() else { return };
    host.write(
        "kubeconfig",
        "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
         clusters: [{ name: lab, cluster: { server: 'https://127.0.0.1:1' } }]\n\
         users: [{ name: node, user: { token: none } }]\n\
         contexts: [{ name: lab, context: { cluster: lab, user: node } }]\n",
    );
    let folder = host.dir.path().display();
    host.write(
        "config.yaml",
        &format!(
            "devices: [{{ name: eth0, role: uplink }}]\nstateDir: {folder}/state\n\
             kubernetes: {{ enabled: true, kubeconfig: {folder}/kubeconfig }}\n"
        ),
    );
    let log = host.dir.path().join("agent.log");
    let mut command = host.command("fairlead run --config DIR/config.yaml");
    let mut agent = Process::start(&mut command, &log).unwrap();
    wait_for("the agent", STARTS, || {
        Ok(std::os::unix::net::UnixStream::connect(host.socket()).ok())
    })
    .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));

    assert!(agent.stop().unwrap().success());
    assert!(!host.socket().exists(), "its socket is taken away");
}

#[test]
fn tables_and_keys_that_do_not_exist_are_answered_with_those_that_do() {
    let Some(host) = host() else { return };
    let mut agent = host.agent();

    let tables: Vec<_> = tables::ALL.iter().map(|table| table.name).collect();
    host.refuses(
        "dpctl maps dump NOPE",
        ERROR,
        &format!(
            "dpctl: no table is called NOPE: there are {}",
            tables.join(", ")
        ),
    );
    for (key, why) in [
        (
            "BACKENDS x",
            "\"x\" is no key of BACKENDS: the key is a number",
        ),
        (
            "SERVICES web",
            "\"web\" is no key of SERVICES: field addr is missing; the key is addr, port, proto",
        ),
        (
            "SERVICES addr=10.0.0 port=80 proto=tcp",
            "\"addr=10.0.0 port=80 proto=tcp\" is no key of SERVICES: addr=10.0.0: invalid IP address \
             syntax",
        ),
    ] {
        host.refuses(
            &format!("dpctl maps get {key}"),
            ERROR,
            &format!("dpctl: {why}"),
        );
    }
    host.refuses(
        "dpctl maps get BACKENDS 200000",
        NO,
        "BACKENDS has no such row",
    );
    host.refuses(
        "dpctl maps get SERVICES addr=10.0.0.1 port=80 proto=tcp",
        NO,
        "SERVICES has no such row",
    );
    host.refuses(
        "dpctl services nope",
        NO,
        "no service is called \"nope\" or has that address",
    );
    assert!(agent.stop().unwrap().success());
    // The tables speak without the agent.
    assert_eq!(host.say("dpctl maps get BACKENDS 3").code, YES);
    host.refuses(
        "dpctl maps get BACKENDS x",
        ERROR,
        "dpctl: \"x\" is no key of BACKENDS: the key is a number",
    );
}

#[test]
fn a_pod_is_refused_with_what_stands_in_its_way() {
    let Some(host) = host() else { return };
    let [a, b] = ["a", "b"].map(|_| Netns::unique("fl-clipod").unwrap());
    host.refuses(
        "fairlead pod add p1 --netns fl-nope --ip 10.9.0.1",
        ERROR,
        "fairlead: opening the network namespace /run/netns/fl-nope: there is none; `ip netns list` \
         shows those with a name",
    );
    host.answers("fairlead pod del p1", YES, &["there was no pod p1"]);
    host.refuses(
        "fairlead pod list",
        YES,
        "no pods; `fairlead pod add` joins a network namespace",
    );
    let said = host.say("fairlead pod add p1 --netns fl-nope --ip 10.9.0");
    assert_eq!(said.code, ERROR);
    assert!(
        said.err.starts_with(
            "error: invalid value '10.9.0' for '--ip <ADDRESS>': invalid IP address syntax\n"
        ),
        "{said:?}"
    );

    let add = |name: &str, netns: &Netns, ip: &str| {
        format!("fairlead pod add {name} --netns {} --ip {ip}", netns.name())
    };
    let said = host.say(&add("p1", &a, "10.9.0.1 --ip fd09::1"));
    assert_eq!(said.code, YES, "{said:?}");
    for address in ["10.9.0.1", "fd09::1"] {
        host.refuses(
            &add("p2", &b, address),
            ERROR,
            &format!("fairlead: adding pod p2: pod p1 has address {address}"),
        );
    }
    host.refuses(
        &add("p2", &a, "10.9.0.2"),
        ERROR,
        &format!(
            "fairlead: making the link of pod p2: /run/netns/{} has a device eth0 already: remove it \
             there, or the pod that it belongs to",
            a.name()
        ),
    );
    // What was refused has left nothing behind.
    let said = host.say("fairlead pod list");
    assert_eq!(said.out.lines().count(), 1, "{said:?}");
    assert!(said.out.starts_with("p1  fl"), "{said:?}");
    host.answers("fairlead pod del p1", YES, &["pod p1 is no longer joined"]);
    host.answers("fairlead pod del p1", YES, &["there was no pod p1"]);
}

#[test]
fn unwrapping_on_an_interface_that_is_not_there_leaves_nothing_behind() {
    let Some(host) = host() else { return };
    host.refuses(
        "fairlead decap attach nope --address 10.0.0.1",
        ERROR,
        "fairlead: there is no interface nope here; `ip link` lists what there is",
    );
    assert!(!host.pins().exists());
    host.answers(
        "fairlead decap detach nope",
        YES,
        &["nope: nothing was attached"],
    );
    host.answers("fairlead cleanup", YES, &["nothing to remove"]);
}

#[test]
fn pins_belong_on_a_bpf_file_system() {
    let Some(host) = host() else { return };
    std::fs::create_dir(host.dir.path().join("empty")).unwrap();
    host.write("full/file", "");
    for verb in ["run", "decap attach lo --address 10.0.0.1"] {
        host.refuses(
            &format!("fairlead {verb} --pin-path DIR/empty/fairlead"),
            ERROR,
            "fairlead: DIR/empty/fairlead is not on a BPF file system: `mount -t bpf bpf DIR/empty` \
             (as root) makes one",
        );
        // Nobody is told to mount over files.
        for path in ["DIR/full/fairlead", "/nowhere/fairlead", "/fairlead"] {
            host.refuses(
                &format!("fairlead {verb} --pin-path {path}"),
                ERROR,
                &format!(
                    "fairlead: {path} is not on a BPF file system: keep the pins below /sys/fs/bpf, \
                     or mount one (`mount -t bpf bpf FOLDER`) and keep them there"
                ),
            );
        }
    }
    host.answers(
        "fairlead cleanup --pin-path DIR/full/fairlead",
        YES,
        &["nothing to remove"],
    );
    assert!(host.dir.path().join("full/file").exists());
}

#[test]
fn a_missing_capability_is_named_before_anything_is_done() {
    let Some(host) = host() else { return };
    let pod = Netns::unique("fl-clipod").unwrap();
    let add = format!("pod add p1 --netns {} --ip 10.9.0.1", pod.name());
    for (without, verb, missing) in [
        ("bpf,-sys_admin", "run", "CAP_BPF"),
        ("perfmon,-sys_admin", "run", "CAP_PERFMON"),
        ("net_admin", "run", "CAP_NET_ADMIN"),
        ("bpf,-perfmon,-sys_admin", "run", "CAP_BPF, CAP_PERFMON"),
        ("bpf,-sys_admin", "cleanup", "CAP_BPF"),
        ("net_admin", "cleanup", "CAP_NET_ADMIN"),
        (
            "bpf,-sys_admin",
            "decap attach lo --address 10.0.0.1",
            "CAP_BPF",
        ),
        ("net_admin", "decap detach lo", "CAP_NET_ADMIN"),
        ("net_admin", &add, "CAP_NET_ADMIN"),
        ("sys_admin", &add, "CAP_SYS_ADMIN"),
        ("net_admin", "pod del p1", "CAP_NET_ADMIN"),
    ] {
        let pronoun = if missing.contains(',') { "them" } else { "it" };
        host.refuses(
            &format!("setpriv --bounding-set -{without} fairlead {verb}"),
            ERROR,
            &format!(
                "fairlead: missing {missing}: run as root, or grant {pronoun} to this process \
                 (systemd: AmbientCapabilities=, Kubernetes: securityContext.capabilities.add)"
            ),
        );
    }
    assert!(!host.pins().exists());
}

#[test]
fn whoever_may_not_look_is_told_so_and_not_that_there_is_nothing() {
    let Some(host) = host() else { return };
    let agent = host.agent();
    let program = host.dir.path().join("program");
    copy("dpctl", &program);
    std::fs::set_permissions(host.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(host.bpffs.path(), std::fs::Permissions::from_mode(0o700)).unwrap();

    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups DIR/program";
    host.refuses(
        &format!("{nobody} maps list"),
        ERROR,
        "dpctl: looking for tables in BPF/fairlead; run as root: Permission denied (os error 13)",
    );
    host.refuses(
        &format!("{nobody} status"),
        ERROR,
        "dpctl: cannot reach the agent at DIR/agent.sock: Permission denied (os error 13); the socket \
         is for root and the group fairlead",
    );
    drop(agent);
}

#[test]
fn a_second_agent_is_refused_by_the_pins_and_by_the_socket() {
    let Some(host) = host() else { return };
    let mut agent = host.agent();
    // `ip netns exec` becomes what it starts, so this is the agent's own id.
    let first = agent.id();

    for elsewhere in ["", " --socket DIR/other.sock"] {
        host.refuses(
            &format!("fairlead run{elsewhere}"),
            ERROR,
            &format!(
                "fairlead: another agent (pid {first}) owns BPF/fairlead: stop it, or give this one \
                 another pin path"
            ),
        );
    }
    host.refuses(
        "fairlead run --pin-path BPF/other",
        ERROR,
        "fairlead: DIR/agent.sock is answered by another agent; stop that one, or give this one its \
         own `socket:`",
    );
    assert_eq!(agent.ended().unwrap(), None);
    assert_ne!(host.say("dpctl status").code, ERROR);
}

#[test]
fn cleanup_says_what_it_removed_and_then_that_nothing_is_left() {
    let Some(host) = host() else { return };
    host.answers("fairlead cleanup", YES, &["nothing to remove"]);
    let mut agent = host.agent();
    let pid = agent.id();
    let programs = Object::parse(OBJECT).unwrap().programs.len();

    host.answers(
        "fairlead cleanup",
        YES,
        &[
            &format!("the agent (pid {pid}) withdrew its announcements and ended"),
            "removed 0 learnt routes and 0 neighbours",
            &format!(
                "unpinned {} programs and {} tables",
                programs,
                tables::ALL.len()
            ),
        ],
    );
    // Nothing of the agent's is left when cleanup returns, though its process may take a moment.
    assert!(!host.socket().exists());
    let ended = wait_for("the agent to end", 5, || agent.ended()).unwrap();
    assert!(ended.success(), "{}", agent.printed());
    for _ in 0..2 {
        host.answers("fairlead cleanup", YES, &["nothing to remove"]);
    }
    assert!(!host.pins().exists());
}
