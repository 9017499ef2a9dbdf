//! `tandem-mount` as mount(8), fstab(5) and people use it.
//!
//! What needs helpers in `/sbin`, lines in `/etc/fstab` or a `/dev/fuse` for everybody runs in a mount namespace of its
//! own, so that nothing of this machine is changed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use super::cluster::{Cluster, program};
use super::shell::{sh, try_sh};

/// A mount namespace with `mount.tandemfs` in `/sbin`. Scripts find in `$T` a directory that everybody may enter, with a
/// mount point `$T/m` that belongs to nobody and credentials in `$T/credentials`.
struct Namespace {
    directory: tempfile::TempDir,
    url: String,
}

impl Namespace {
    fn new(cluster: &Cluster, user: &str, password: &str) -> Self {
        let directory = tempfile::TempDir::with_prefix("tandem-it-").expect("the namespace is prepared");
        let path = directory.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("the namespace is prepared");
        fs::create_dir(path.join("sbin")).expect("the namespace is prepared");
        fs::copy(program("tandem-mount"), path.join("tandem-mount")).expect("the namespace is prepared");
        for name in ["mount.tandemfs", "mount.fuse.tandemfs"] {
            symlink(path.join("tandem-mount"), path.join("sbin").join(name))
                .expect("the namespace is prepared");
        }
        let credentials = path.join("credentials");
        fs::write(&credentials, format!("username = \"{user}\"\npassword = \"{password}\"\n"))
            .expect("the namespace is prepared");
        sh(path, "chmod 600 credentials && mkdir m && chown nobody m credentials");
        Self { directory, url: cluster.url().to_owned() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a script, with lines for `/etc/fstab`. What it leaves mounted is unmounted.
    #[track_caller]
    fn run(&self, fstab: &str, script: &str) -> String {
        let fstab = fstab.replace("URL", &self.url).replace("$T", &self.path().display().to_string());
        fs::write(self.path().join("fstab"), fstab).expect("the namespace is prepared");
        let script = format!(
            r#"
            export T={} U={}
            trap 'grep -F " $T/m " /proc/mounts > /dev/null && umount -l $T/m' EXIT
            # Copies of other tests' mounts would keep those from ending when they are unmounted.
            awk '$3 == "fuse.tandemfs" {{ print $2 }}' /proc/mounts | while read -r other; do umount -l "$other"; done
            sbin=$(readlink -f /sbin)
            mount -t overlay -o lowerdir=$T/sbin:$sbin overlay $sbin
            mount --bind $T/fstab /etc/fstab
            mknod $T/fuse c 10 229 && chmod 666 $T/fuse && mount --bind $T/fuse /dev/fuse
            as_nobody() {{ setpriv --reuid=nobody --regid=nogroup --clear-groups --reset-env "$@"; }}
            refused() {{ local wanted=$1 status=0; shift; "$@" 2> $T/said || status=$?
                [ $status = $wanted ] || {{ echo "$* ended with $status, not $wanted"; cat $T/said; return 1; }}; }}
            {script}
            "#,
            self.path().display(),
            self.url
        );
        fs::write(self.path().join("script"), script).expect("the namespace is prepared");
        let output = sh(self.path(), "timeout -k 5 100 unshare -m bash -euo pipefail script 2>&1");
        let _removed = fs::remove_file(self.path().join("fuse"));
        output
    }
}

#[test]
fn mount_calls_the_helper() {
    let cluster = Cluster::start();
    let namespace = Namespace::new(&cluster, "admin", "admin123");
    namespace.run(
        "URL $T/m tandemfs _netdev,nofail,noauto,user,x-systemd.automount,x-systemd.idle-timeout=60,comment=home,credentials=$T/credentials 0 0\n",
        r#"
        mount -t tandemfs -o credentials=$T/credentials,ro $U $T/m
        [ "$(findmnt -no FSTYPE,SOURCE $T/m)" = "fuse.tandemfs $U" ]
        findmnt -no OPTIONS $T/m | grep -w ro
        ! touch $T/m/f 2> /dev/null
        ! cat /proc/mounts /proc/*/cmdline 2> /dev/null | tr '\0' ' ' | grep -v grep | grep -F admin123
        umount $T/m

        mount $T/m                                                   # by its line in fstab
        echo kept > $T/m/f && [ "$(stat -c %U $T/m/f)" = root ]
        findmnt -no OPTIONS $T/m | grep -w nosuid | grep -w nodev | grep -w noexec
        mount -o remount,ro $T/m
        findmnt -no OPTIONS $T/m | grep -w ro
        ! touch $T/m/g 2> /dev/null
        mount -o remount,rw $T/m
        touch $T/m/g && rm $T/m/g
        umount $T/m

        mount -a                                                     # noauto
        ! mountpoint -q $T/m
        sed s/noauto,user,/auto,/ /etc/fstab > $T/other && cat $T/other > /etc/fstab
        mount -a
        [ "$(cat $T/m/f)" = kept ]
        mount -a                                                     # once is enough
        [ "$(grep -c " $T/m " /proc/mounts)" = 1 ]
        umount $T/m
        "#,
    );
}

#[test]
fn mount_passes_flags_and_statuses_on() {
    let cluster = Cluster::start();
    let namespace = Namespace::new(&cluster, "admin", "admin123");
    namespace.run(
        "",
        r#"
        t="mount -t tandemfs" o=credentials=$T/credentials
        $t -f -n -v -o $o $U $T/m                                    # checks, and mounts nothing
        ! mountpoint -q $T/m
        refused 32 $t -f -o $o http://127.0.0.1:1x $T/m

        refused 1 $t -o $o,nosuchoption $U $T/m
        grep -q nosuchoption $T/said
        $t -s -o $o,nosuchoption $U $T/m && umount $T/m
        refused 1 $t -o $o,cache_size=1M $U $T/m
        refused 1 $t -o $o,password=admin123 $U $T/m
        ! grep -F admin123 $T/said
        refused 32 $t -o $o http://127.0.0.1:1 $T/m
        refused 32 $t -o credentials=$T/nosuchfile $U $T/m
        refused 32 $t -o $o,subdir=nosuch $U $T/m
        refused 32 $t -o remount,ro $U $T/m
        ! mountpoint -q $T/m

        $t -r -o $o $U $T/m && findmnt -no OPTIONS $T/m | grep -w ro && umount $T/m
        $t -w -o $o,sync,noexec,noatime,allow_other,default_permissions,memory=64M $U $T/m
        findmnt -no OPTIONS $T/m | grep -w rw | grep -w sync | grep -w noexec | grep -w allow_other | grep -w noatime
        printf '#!/bin/sh\n' > $T/m/run && chmod 755 $T/m/run && ! $T/m/run 2> /dev/null
        touch -a -d @5 $T/m/run
        as_nobody cat $T/m/run > /dev/null
        [ "$(stat -c %X $T/m/run)" = 5 ]
        umount $T/m
        for options in strictatime noatime,relatime nodiratime; do
            $t -o $o,$options $U $T/m && findmnt -no OPTIONS $T/m | grep -w relatime
            touch -a -d @5 $T/m/run $T/m && cat $T/m/run > /dev/null && ls $T/m > /dev/null
            [ "$(stat -c %X $T/m/run)" != 5 ]
            if [ $options = nodiratime ]; then [ "$(stat -c %X $T/m)" = 5 ]; else [ "$(stat -c %X $T/m)" != 5 ]; fi
            umount $T/m
        done

        unshare -m sleep 100 & other=$!
        while [ "$(readlink /proc/$other/ns/mnt)" = "$(readlink /proc/self/ns/mnt)" ]; do sleep 0.05; done
        $t -N $other -o $o $U $T/m
        ! mountpoint -q $T/m
        grep -F " $T/m " /proc/$other/mounts
        nsenter -m -t $other cat $T/m/run > /dev/null
        nsenter -m -t $other umount $T/m
        kill $other
        "#,
    );
}

#[test]
fn a_user_mounts_for_himself() {
    let cluster = Cluster::start();
    let namespace = Namespace::new(&cluster, "admin", "admin123");
    namespace.run(
        "URL $T/m tandemfs noauto,user,credentials=$T/credentials 0 0\n",
        r#"
        as_nobody $T/tandem-mount $U $T/m -o credentials=$T/credentials
        findmnt -no OPTIONS $T/m | grep -w user_id=$(id -u nobody) | grep -w nosuid | grep -w nodev
        as_nobody cp -r /usr/include/linux/netfilter $T/m/
        as_nobody diff -r /usr/include/linux/netfilter $T/m/netfilter
        as_nobody sh -c "cd $T/m && mkdir d && mv netfilter d/ && ln -s d/netfilter l && ls l/ | grep -q . && chmod 700 d"
        [ "$(as_nobody stat -c %U $T/m $T/m/d | sort -u)" = nobody ]
        ! ls $T/m 2> /dev/null                                       # not even root
        ! setpriv --reuid=daemon --clear-groups ls $T/m 2> /dev/null
        as_nobody fusermount3 -u $T/m
        ! mountpoint -q $T/m
        refused 32 as_nobody $T/tandem-mount $U $T/m -o credentials=$T/credentials,allow_other
        grep -q user_allow_other $T/said
        refused 32 as_nobody $T/tandem-mount $U $T/m -o credentials=$T/credentials,allow_other,suid
        refused 32 as_nobody $T/tandem-mount $U $T/sbin -o credentials=$T/credentials

        as_nobody mount $T/m                                         # fstab allows it
        as_nobody test -d $T/m/d/netfilter
        as_nobody umount $T/m
        "#,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_volume_is_mounted() {
    let cluster = Cluster::start();
    let whole = cluster.mount("whole");
    sh(
        whole.path(),
        "mkdir -p a/b/c && echo secret > outside && echo in > a/b/f && ln -s ../../outside a/b/up && ln -s b a/link && touch file",
    );
    // While it finds its way down, the directories above it change under a lease, which it has to be told of at once.
    let passing = whole.path().join("passing");
    let is_mounted = AtomicBool::new(false);
    let part = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_mounted.load(Ordering::Relaxed) {
                fs::create_dir(&passing).unwrap();
                fs::remove_dir(&passing).unwrap();
            }
        });
        let part = cluster.mount_as("admin", "admin123", "part", "subdir=/a/b");
        is_mounted.store(true, Ordering::Relaxed);
        part
    });
    let inside = sh(
        part.path(),
        r#"
        [ "$(ls -A | xargs)" = "c f up" ] && [ "$(cat f)" = in ]
        ! cat up 2> /dev/null && ! cat c/../../outside 2> /dev/null
        [ "$(stat -c %i .)" = 1 ] && [ "$(ls -id ..)" = "$(cd .. && pwd -P | xargs ls -id | sed 's| .*| ..|')" ]
        [ "$(cd c && ls -ai | awk '$2 == ".." { print $1 }')" = 1 ]
        ln f c/hard && [ "$(stat -c %h f)" = 2 ] && mv c/hard moved && mkdir -p c/d && mv moved c/d/ && cat c/d/moved
        stat -f -c %b .
        "#,
    );
    assert!(inside.starts_with("in\n"), "{inside}");
    assert_eq!(fs::read_to_string(whole.path().join("a/b/c/d/moved")).unwrap(), "in\n");
    assert_eq!(fs::metadata(whole.path().join("a/b/f")).unwrap().nlink(), 2);
    // What one has done the other sees, in the root of the part as well.
    for round in 0..30 {
        let name = format!("n{round}");
        fs::write(whole.path().join("a/b").join(&name), "x").unwrap();
        assert_eq!(fs::read_to_string(part.path().join(&name)).unwrap(), "x");
        fs::remove_file(part.path().join(&name)).unwrap();
        assert!(!whole.path().join("a/b").join(&name).exists());
        let mode = 0o700 + round % 8;
        fs::set_permissions(whole.path().join("a/b"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(part.path()).unwrap().mode() & 0o7777, mode);
    }
    part.unmount();

    let point = cluster.root().join("part");
    for (path, word) in [
        ("nosuch", "No such file"),
        ("a/b/nosuch/x", "No such file"),
        ("file", "Not a directory"),
        ("a/link", "Not a directory"),
        ("a/..", "subdir="),
    ] {
        let output = cluster.try_mount("admin", "admin123", &point, &format!("subdir={path}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(word), "{path}: {said}");
    }
    // A refused mount leaves no session that would hold others up.
    let rest = cluster.login("admin", "admin123").await;
    let sessions: Value = rest.request("GET", "/v1/sessions").send().await.unwrap().json().await.unwrap();
    assert_eq!(sessions["sessions"].as_array().map(Vec::len), Some(1), "{sessions}");
    whole.unmount();
}

#[test]
fn df_shows_the_quota() {
    let cluster = Cluster::start();
    let secret = cluster.root().join("secret");
    fs::write(&secret, "a long password").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let secret = secret.display().to_string();
    let add = ["admin", "users", "add", "alice", "--quota-bytes", "64M", "--quota-files", "20"];
    cluster.tandem(&[&add[..], &["--password-file", &secret]].concat());
    let mount = cluster.mount_as("alice", "a long password", "m", "");
    sh(mount.path(), "for i in 1 2 3 4; do head -c 4M /dev/urandom > f$i; done; sync f*; sleep 1.1");
    let bytes = sh(mount.path(), "df -B1 --output=size,used,avail . | tail -n 1 | xargs");
    assert_eq!(bytes.trim(), "67108864 16777216 50331648");
    let inodes = sh(mount.path(), "df --output=itotal,iused,iavail . | tail -n 1 | xargs");
    assert_eq!(inodes.trim(), "20 4 16");
    let output = try_sh(mount.path(), "head -c 60M /dev/urandom > big && sync big");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Disk quota exceeded"));
    let output = try_sh(mount.path(), "rm -f big; for i in $(seq 30); do touch n$i || exit 1; done");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Disk quota exceeded"));
    let full = sh(mount.path(), "sleep 1.1; df --output=itotal,iused,iavail . | tail -n 1 | xargs");
    assert_eq!(full.trim(), "20 20 0");
    mount.unmount();
}
