//! What sandboxes reach and what they do not, tried from inside as root, against servers in a network of their own.

#![expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]

use podflare_api::id::SandboxId;
use podflare_e2e::host::Host;
use podflare_e2e::wait::until;
use podflare_e2e::world::{
    ECHO_PORTS, FORBIDDEN, GREETING, NOTE_PORT, OTHER, OURS, PRIVATE, PUBLIC, RESOLVER, World,
};
use serde_json::{Value, json};
use std::fmt::Display;
use std::net::{Ipv4Addr, TcpListener};

/// What every sandbox is told about itself, as Python.
const TOOLS: &str = r#"
import socket, struct
def connect(host, port):
    try:
        with socket.create_connection((host, port), timeout=4) as stream:
            return stream.recv(16).decode() or "closed"
    except OSError as error:
        return type(error).__name__
def lookup(name):
    try:
        return socket.gethostbyname(name)
    except OSError:
        return "unknown"
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~((total & 0xffff) + (total >> 16)) & 0xffff
def datagram(source, target, port, content):
    """An IP packet with a UDP datagram without a checksum."""
    udp = struct.pack("!HHHH", 4000, port, 8 + len(content), 0) + content
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
        socket.inet_aton(source), socket.inet_aton(target))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp
def send_raw(source, target, port, content):
    """Past the guest's own routing and its checks, to the gateway's card."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as card:
        card.bind(("eth0", 0))
        mac = card.getsockname()[4]
        card.send(bytes.fromhex("0200000000fe") + mac + b"\x08\x00" + datagram(source, target, port, content))
def asks_for_gateway(source):
    """Whether somebody who says to have this address is told where the gateway is."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as card:
        card.bind(("eth0", 0x0806)); card.settimeout(1)
        mac = card.getsockname()[4]
        ask = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + socket.inet_aton(source) + bytes(6) + socket.inet_aton("198.18.0.1")
        card.send(b"\xff" * 6 + mac + b"\x08\x06" + ask)
        try:
            return card.recv(64)[28:32] == socket.inet_aton("198.18.0.1")
        except TimeoutError:
            return False
"#;

struct Try<'a> {
    host: &'a Host,
    id: SandboxId,
}

impl Try<'_> {
    fn new<'a>(host: &'a Host, egress: &Value) -> Try<'a> {
        let id = host.create_with(&json!({ "egress": egress }));
        Try::in_sandbox(host, id)
    }

    fn in_sandbox(host: &Host, id: SandboxId) -> Try<'_> {
        host.python(&id, TOOLS).unwrap();
        Try { host, id }
    }

    fn python(&self, code: &str) -> String {
        let output = self.host.python(&self.id, code).unwrap();
        assert_eq!(output.exit_code, 0, "{code}: {output:?}");
        output.stdout
    }

    fn connect(&self, address: impl Display, port: u16) -> String {
        self.python(&format!("print(connect('{address}', {port}))"))
    }

    fn reaches(&self, address: impl Display, port: u16) -> bool {
        self.connect(address, port) == GREETING
    }

    fn lookup(&self, name: &str) -> String {
        self.python(&format!("print(lookup({name:?}))"))
    }

    fn address(&self) -> Ipv4Addr {
        self.host.network(&self.id).address.unwrap()
    }

    /// Sends a datagram from wherever it claims to be.
    fn send_raw(&self, source: Ipv4Addr, target: Ipv4Addr, port: u16, content: &str) {
        self.python(&format!("send_raw('{source}', '{target}', {port}, b'{content}')"));
    }
}

/// Interfaces in the network that belongs to hostd's thread.
fn interfaces(host: &Host) -> usize {
    let tasks = format!("/proc/{}/task", host.process.id());
    let is_network = |task: &std::path::PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "network")
    };
    let task = std::fs::read_dir(tasks).unwrap().map(|task| task.unwrap().path()).find(is_network).unwrap();
    std::fs::read_to_string(task.join("net/dev")).unwrap().lines().filter(|line| line.contains(':')).count()
}

/// One test, because there is one world: each step begins with sandboxes of its own.
#[test]
fn sandboxes_reach_what_they_may_and_nothing_else() {
    let world = World::new();
    let never = format!("{FORBIDDEN}/32");
    let host = Host::start_with_settings(2, &[("PODFLARE_DNS", RESOLVER), ("PODFLARE_NEVER", &never)]);
    what_is_public_is_reached_and_nothing_that_is_somebodys_own(&host, &world);
    nothing_leaves_a_sandbox_that_is_cut_off(&host, &world);
    a_list_lets_through_what_is_on_it(&host);
    a_change_holds_at_once_and_for_open_connections(&host);
    a_childs_connections_are_reset_and_its_sources_are_not(&host);
    what_comes_and_goes_leaves_no_interface(&host);
    one_that_opens_very_many_connections_has_no_more_of_the_hosts_table_than_its_part(&host);
    rules_that_somebody_removes_come_back(&host);
    a_killed_hostd_leaves_no_interface(host);
}

fn what_is_public_is_reached_and_nothing_that_is_somebodys_own(host: &Host, world: &World) {
    let [one, sibling] = [Try::new(host, &json!(true)), Try::new(host, &json!(true))];
    assert_eq!(one.lookup("web.example"), PUBLIC.to_string());
    assert!(ECHO_PORTS.iter().all(|port| one.reaches(PUBLIC, *port)));
    assert!(one.reaches("web.example", 80));

    // A service of the host, on all of its addresses, and one of the sibling.
    let service = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = service.local_addr().unwrap().port();
    sibling.python(
        "listener = socket.create_server(('', 5000))\nheard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         heard.bind(('', 5001)); heard.settimeout(1)",
    );
    let gateway = Ipv4Addr::new(198, 18, 0, 1);
    let link = Ipv4Addr::new(198, 18, 255, 253);
    for address in OURS.into_iter().chain([gateway, link]) {
        assert_ne!(one.connect(address, port), GREETING, "{address}");
        service.set_nonblocking(true).unwrap();
        assert!(service.accept().is_err(), "{address} led to the host");
    }
    for (address, port) in [(PRIVATE, 80), (sibling.address(), 5000), (Ipv4Addr::new(169, 254, 169, 254), 80)]
    {
        assert!(!["closed", GREETING].contains(&&*one.connect(address, port)), "{address}");
    }

    assert!(!one.reaches(FORBIDDEN, 80));
    assert_eq!(one.python(&format!("print(asks_for_gateway('{}'))", one.address())), "True");
    assert_eq!(one.python(&format!("print(asks_for_gateway('{}'))", sibling.address())), "False");

    // As root, past the guest's own network: from the sibling's address, from a public one, and to the sibling.
    one.send_raw(sibling.address(), PUBLIC, NOTE_PORT, "as the sibling");
    one.send_raw(Ipv4Addr::new(8, 8, 8, 8), PUBLIC, NOTE_PORT, "as anybody");
    one.send_raw(one.address(), PRIVATE, NOTE_PORT, "to a private network");
    one.send_raw(one.address(), OURS[0], NOTE_PORT, "to the host");
    one.send_raw(one.address(), sibling.address(), 5001, "to the sibling");
    one.send_raw(gateway, sibling.address(), 5001, "to the sibling, as the gateway");
    one.send_raw(one.address(), PUBLIC, NOTE_PORT, "as itself");
    assert_eq!(world.notes_until(b"as itself"), [b""; 0]);
    let heard = "try: print(heard.recv(64))\nexcept TimeoutError: print('nothing')";
    assert_eq!(sibling.python(heard), "nothing");

    let usage = host.network(&one.id);
    assert!(usage.sent_bytes > 0 && usage.received_bytes > 0 && usage.connections >= 3, "{usage:?}");
    assert_eq!(host.network(&sibling.id).connections, 0);
    [one, sibling].iter().for_each(|sandbox| host.delete(&sandbox.id));
}

fn nothing_leaves_a_sandbox_that_is_cut_off(host: &Host, world: &World) {
    let [cut_off, open] = [Try::new(host, &json!(false)), Try::new(host, &json!(true))];
    assert!(!cut_off.reaches(PUBLIC, 80));
    cut_off.send_raw(cut_off.address(), PUBLIC, NOTE_PORT, "from the cut-off one");
    open.send_raw(open.address(), PUBLIC, NOTE_PORT, "from the open one");
    assert_eq!(world.notes_until(b"from the open one"), [b""; 0]);
    assert_eq!(host.network(&cut_off.id).sent_bytes, 0);
    [cut_off, open].iter().for_each(|sandbox| host.delete(&sandbox.id));
}

fn a_list_lets_through_what_is_on_it(host: &Host) {
    let allow =
        json!({ "allow": ["web.example:80", "private.example", "metadata.example", "10.1.0.0/24:443"] });
    let listed = Try::new(host, &allow);
    assert!(!listed.reaches(PUBLIC, 80), "its name has not been asked for");
    assert_eq!(listed.lookup("web.example"), PUBLIC.to_string());
    assert!(listed.reaches(PUBLIC, 80));
    assert!(!listed.reaches(PUBLIC, 443));
    assert!(!listed.reaches(OTHER, 80));
    assert_eq!(listed.lookup("sub.web.example"), "unknown");
    // A name leads into a private network only where the list names that, too, and to the metadata never.
    assert_eq!(listed.lookup("private.example"), PRIVATE.to_string());
    assert_eq!(listed.lookup("metadata.example"), "unknown");
    assert!(listed.reaches(PRIVATE, 443));
    assert!(!listed.reaches(PRIVATE, 80), "the name does not widen what is on the list for its addresses");
    assert!(!listed.reaches("169.254.169.254", 80));

    let by_name_only = Try::new(host, &json!({ "allow": ["private.example", "*.web.example"] }));
    assert_eq!(by_name_only.lookup("private.example"), "unknown");
    assert!(!by_name_only.reaches(PRIVATE, 443));
    assert!(by_name_only.reaches("sub.web.example", 443));
    assert_eq!(by_name_only.lookup("web.example"), "unknown");
    [listed, by_name_only].iter().for_each(|sandbox| host.delete(&sandbox.id));
}

fn a_change_holds_at_once_and_for_open_connections(host: &Host) {
    let sandbox = Try::new(host, &json!(true));
    let keep = "stream = socket.create_connection(('{PUBLIC}', 80), timeout=4); stream.recv(16)";
    sandbox.python(&keep.replace("{PUBLIC}", &PUBLIC.to_string()));
    let say = "try:\n    stream.send(b'again'); print(stream.recv(16).decode())\nexcept OSError as error: print('no')";
    assert_eq!(sandbox.python(say), "again");
    host.set_egress(&sandbox.id, &json!({ "allow": [format!("{PUBLIC}:80")] }));
    assert_eq!(sandbox.python(say), "again", "it is on the list");
    host.set_egress(&sandbox.id, &json!({ "allow": [OTHER.to_string()] }));
    assert_eq!(sandbox.python(say), "no");
    assert!(sandbox.reaches(OTHER, 80) && !sandbox.reaches(PUBLIC, 80));
    host.set_egress(&sandbox.id, &json!(false));
    assert!(!sandbox.reaches(OTHER, 80));
    host.set_egress(&sandbox.id, &json!(true));
    assert!(sandbox.reaches(OTHER, 80) && sandbox.reaches(PUBLIC, 80));
    host.delete(&sandbox.id);
}

fn a_childs_connections_are_reset_and_its_sources_are_not(host: &Host) {
    let parent = Try::new(host, &json!({ "allow": [PUBLIC.to_string()] }));
    parent.python(&format!(
        "far = socket.create_connection(('{PUBLIC}', 80), timeout=4); far.recv(16)\n\
         listener = socket.create_server(('127.0.0.1', 0))\n\
         near = socket.create_connection(listener.getsockname()); inner, _ = listener.accept()"
    ));
    let (children, _) = host.fork(&parent.id, 2);
    let mut addresses = vec![parent.address()];
    for child in children {
        let child = Try::in_sandbox(host, child);
        let far = "try: print(far.recv(16))\nexcept OSError as error: print(type(error).__name__)";
        assert_eq!(child.python(far), "ConnectionAbortedError");
        assert_eq!(child.python("near.send(b'within'); print(inner.recv(16).decode())"), "within");
        assert!(child.reaches(PUBLIC, 80) && !child.reaches(OTHER, 80), "the list is inherited");
        let own =
            child.python("print(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9)))");
        assert_eq!(own, "None");
        addresses.push(child.address());
        let shown = host.bash(&child.id, "ip -4 -o address show eth0").unwrap().stdout;
        assert!(shown.contains(&child.address().to_string()) && shown.lines().count() == 1, "{shown}");
        host.delete(&child.id);
    }
    assert_eq!(parent.python("far.send(b'on'); print(far.recv(16).decode())"), "on");
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 3);
    host.delete(&parent.id);
}

fn what_comes_and_goes_leaves_no_interface(host: &Host) {
    let settled = || {
        until("machines to be taken down", || host.list().is_empty().then_some(()));
        until("the pool to be full", || (host.pool_ready() == 2).then_some(()));
    };
    settled();
    let before = interfaces(host);
    for round in 0..20 {
        let egress = if round % 2 == 0 { json!(true) } else { json!({ "allow": ["web.example"] }) };
        let sandbox = Try::new(host, &egress);
        assert!(sandbox.reaches("web.example", 80));
        host.delete(&sandbox.id);
    }
    settled();
    until("interfaces to go", || (interfaces(host) <= before).then_some(()));
}

fn one_that_opens_very_many_connections_has_no_more_of_the_hosts_table_than_its_part(host: &Host) {
    let connections = || {
        let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
        count.trim().parse::<u32>().unwrap()
    };
    let before = connections();
    let sandbox = Try::new(host, &json!(true));
    sandbox.python(&format!(
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as all:\n    \
         for port in range(10000, 16000): all.sendto(b'x', ('{PUBLIC}', port))"
    ));
    let open = connections() - before;
    // Those that are over are counted until the kernel comes by.
    assert!((2000..=5000).contains(&open), "{open} connections are open");
    host.delete(&sandbox.id);
    until("its connections to be forgotten", || (connections() < before + 100).then_some(()));
}

fn rules_that_somebody_removes_come_back(host: &Host) {
    let sandbox = Try::new(host, &json!(true));
    assert!(std::process::Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
    until("the rules to come back", || {
        let listed =
            std::process::Command::new("nft").args(["list", "table", "ip", "podflare0"]).output().unwrap();
        listed.status.success().then_some(())
    });
    assert!(sandbox.reaches(PUBLIC, 80));
    let service = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    assert_ne!(sandbox.connect(OURS[0], service.local_addr().unwrap().port()), GREETING);
    service.set_nonblocking(true).unwrap();
    assert!(service.accept().is_err(), "the host is reached");
    host.delete(&sandbox.id);
}

fn a_killed_hostd_leaves_no_interface(mut host: Host) {
    let links = || std::fs::read_dir("/sys/class/net").unwrap().count();
    host.create();
    let before = links();
    host.process.kill().unwrap();
    host.process.wait().unwrap();
    until("the link to go", || (links() == before - 1).then_some(()));
    // The next one finds the rules that are left, and replaces them.
    let next = Host::start_with_settings(0, &[("PODFLARE_DNS", RESOLVER)]);
    assert!(Try::new(&next, &json!(true)).reaches("web.example", 80));
}
