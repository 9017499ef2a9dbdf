//! HTTPS from end to end, with an authority of the test's own (security.md E).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use super::cluster::{Cluster, signal};
use super::shell::sh;

/// Makes an authority `NAME.pem`.
fn authority(at: &Path, name: &str) {
    sh(
        at,
        &format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} \
             -keyout {name}.key -out {name}.pem 2> openssl.log"
        ),
    );
}

/// Makes a key and a certificate, signed by an authority, for what `names` says (x509v3_config(5)). They take the place of those before.
fn certificate(at: &Path, authority: &str, names: &str) {
    sh(
        at,
        &format!(
            "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=server \
               -keyout server.key -out server.csr 2>> openssl.log
             printf 'subjectAltName={names}\nbasicConstraints=CA:FALSE\n' > extensions
             openssl x509 -req -in server.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 1 \
               -extfile extensions -out server.pem 2>> openssl.log
             chmod 600 server.key"
        ),
    );
}

/// Mounts with an authority, or with those of the system.
fn mount(cluster: &Cluster, ca: Option<&Path>) -> Output {
    let point = cluster.root().join("m");
    std::fs::create_dir_all(&point).expect("the mount point");
    let option = ca.map(|path| format!("ca={}", path.display())).unwrap_or_default();
    cluster.try_mount("admin", "admin123", &point, &option)
}

#[track_caller]
fn is_refused(output: &Output, word: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(32), "{said}");
    assert!(said.contains(word), "{word} is not in {said:?}");
}

#[test]
fn a_mount_trusts_the_authority_that_it_is_given_and_no_other() {
    let keys = tempfile::TempDir::with_prefix("tandem-it-").unwrap();
    let keys = keys.path();
    authority(keys, "ours");
    authority(keys, "another");
    certificate(keys, "ours", "DNS:localhost,IP:127.0.0.1");
    let (ours, another) = (keys.join("ours.pem"), keys.join("another.pem"));
    let file = |name: &str| keys.join(name).display().to_string();
    let (chain, key) = (file("server.pem"), file("server.key"));
    let mut cluster = Cluster::start_with(&["--tls-cert", &chain, "--tls-key", &key]);
    assert!(cluster.url().starts_with("https://127.0.0.1:"), "{}", cluster.url());

    is_refused(&mount(&cluster, None), "UnknownIssuer");
    is_refused(&mount(&cluster, Some(&another)), "UnknownIssuer");
    is_refused(&mount(&cluster, Some(&keys.join("missing.pem"))), "No such file");
    is_refused(&mount(&cluster, Some(&keys.join("server.key"))), "certificate");

    let there = cluster.mount_as("admin", "admin123", "m", &format!("ca={}", ours.display()));
    sh(there.path(), "head -c 9000000 /dev/urandom > f && md5sum f > sums && sync f sums");
    there.unmount();
    let there = cluster.mount_as("admin", "admin123", "m", &format!("ca={}", ours.display()));
    sh(there.path(), "md5sum --quiet -c sums");

    let whoami = |ca: Option<&Path>| {
        let mut command = cluster.command(&["ls"]);
        command.env("TANDEM_USER", "admin").env("TANDEM_PASSWORD", "admin123");
        command.envs(ca.map(|path| ("TANDEM_CA", path))).output().unwrap()
    };
    assert!(!whoami(None).status.success());
    assert!(String::from_utf8_lossy(&whoami(Some(&ours)).stdout).contains("sums"));
    there.unmount();

    // Signed by the right authority, but for somebody else.
    certificate(keys, "ours", "DNS:files.example.org,IP:127.0.0.2");
    cluster.stop();
    cluster.launch();
    is_refused(&mount(&cluster, Some(&ours)), "not valid for name");
}

/// The serial number of the certificate that a new connection is shown.
fn serial(cluster: &Cluster) -> String {
    let address = cluster.url().trim_start_matches("https://");
    sh(
        cluster.root(),
        &format!("openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -serial"),
    )
}

/// Waits until the daemon has said something for the `count`th time.
#[track_caller]
fn wait_for_log(cluster: &Cluster, word: &str, count: usize) {
    for _ in 0..300 {
        if cluster.log().matches(word).count() >= count {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{word:?} is not in the log {count} times:\n{}", cluster.log());
}

/// A connection that stays open, by a program of others.
struct KeptAlive {
    program: Child,
    answers: BufReader<ChildStdout>,
}

impl KeptAlive {
    fn open(cluster: &Cluster) -> Self {
        let address = cluster.url().trim_start_matches("https://");
        let mut program = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl starts");
        let answers = BufReader::new(program.stdout.take().expect("its output"));
        Self { program, answers }
    }

    /// Sends a request; returns the first line of the answer.
    fn ask(&mut self) -> String {
        let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        self.program.stdin.as_mut().expect("its input").write_all(request).expect("it takes a request");
        let mut lines = self.answers.by_ref().lines().map_while(Result::ok);
        let first = lines.next().unwrap_or_default();
        let _rest = lines.find(|line| line.is_empty());
        first
    }
}

impl Drop for KeptAlive {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn another_certificate_is_taken_up_without_cutting_connections_and_a_bad_one_is_not() {
    const TAKEN: &str = "new connections get the certificate";
    const REFUSED: &str = "the certificate stays as it was";
    let keys = tempfile::TempDir::with_prefix("tandem-it-").unwrap();
    let keys = keys.path();
    authority(keys, "ours");
    let names = "DNS:localhost,IP:127.0.0.1";
    certificate(keys, "ours", names);
    let file = |name: &str| keys.join(name).display().to_string();
    let (chain, key) = (file("server.pem"), file("server.key"));
    // The interval is one that does not come, so that it is the signal that is seen to work.
    let tls = ["--tls-cert", &chain, "--tls-key", &key, "--header-timeout-s", "600"];
    let cluster = Cluster::start_with(&[&tls[..], &["--tls-check-interval-s", "86400"]].concat());
    let hang_up = || signal(cluster.pid(), "HUP");
    let ca = format!("ca={}", file("ours.pem"));
    let mount = cluster.mount_as("admin", "admin123", "m", &ca);
    let mut kept = KeptAlive::open(&cluster);
    assert!(kept.ask().starts_with("HTTP/1.1 204"));
    sh(mount.path(), "exec 5>f; echo one >&5; sync f");

    let first = serial(&cluster);
    certificate(keys, "ours", names);
    assert_eq!(serial(&cluster), first, "nobody has asked for the other one yet");
    hang_up();
    wait_for_log(&cluster, TAKEN, 1);
    let second = serial(&cluster);
    assert_ne!(first, second);
    assert!(kept.ask().starts_with("HTTP/1.1 204"), "what was open goes on");
    sh(mount.path(), "echo two >> f; sync f; [ $(wc -l < f) = 2 ]");

    // None of these is a pair that can be shown: a key of another certificate, no certificate, no key, a key that others can read.
    sh(keys, "cp -p server.pem good.pem; cp -p server.key good.key");
    for (number, (spoil, why)) in [
        ("openssl ecparam -name prime256v1 -genkey -noout -out server.key", "keys"),
        ("echo nonsense > server.pem", "server.pem"),
        (": > server.key", "server.key"),
        ("rm server.key", "No such file"),
        ("chmod 640 server.key", "mode 640"),
    ]
    .into_iter()
    .enumerate()
    {
        sh(keys, spoil);
        hang_up();
        wait_for_log(&cluster, REFUSED, number + 1);
        let log = cluster.log();
        let said = log.lines().rfind(|line| line.contains(REFUSED)).unwrap_or_default();
        assert!(said.contains(why), "{spoil}: {said}");
        assert_eq!(serial(&cluster), second, "{spoil}");
        sh(keys, "cp -p good.pem server.pem; cp -p good.key server.key");
    }
    assert!(kept.ask().starts_with("HTTP/1.1 204"));
    sh(mount.path(), "echo three >> f; sync f; [ $(wc -l < f) = 3 ]");
    mount.unmount();
    drop(cluster);

    // Without a signal, and in two steps, as most programs that renew certificates do it: the pair counts when it is whole.
    let cluster = Cluster::start_with(&[&tls[..], &["--tls-check-interval-s", "1"]].concat());
    let before = serial(&cluster);
    sh(keys, "mkdir next");
    sh(keys, "cp ours.* next");
    certificate(&keys.join("next"), "ours", names);
    sh(keys, "mv next/server.pem server.pem");
    wait_for_log(&cluster, REFUSED, 1);
    assert_eq!(serial(&cluster), before);
    sh(keys, "mv next/server.key server.key");
    wait_for_log(&cluster, TAKEN, 1);
    assert_ne!(serial(&cluster), before);
    std::thread::sleep(Duration::from_secs(3));
    let log = cluster.log();
    assert_eq!(
        (log.matches(TAKEN).count(), log.matches(REFUSED).count()),
        (1, 1),
        "no change, no word:\n{log}"
    );
}

#[test]
fn a_hangup_ends_no_daemon() {
    let cluster = Cluster::start();
    signal(cluster.pid(), "HUP");
    std::thread::sleep(Duration::from_millis(500));
    cluster.status();
}
