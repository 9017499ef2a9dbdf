//! HTTPS from end to end, with an authority of the test's own (security.md E).

use std::path::Path;
use std::process::Output;

use super::cluster::Cluster;
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
