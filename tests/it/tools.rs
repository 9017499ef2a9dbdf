//! Ordinary tools on real data in a mount.

use std::path::Path;

use super::cluster::Cluster;
use super::shell::sh;

/// A tree with real files, sources of a crate, links, modes, times, attributes and odd names. Small enough for every run.
fn real_tree(at: &Path) {
    sh(at, &format!("mkdir tree && cp -a {}/mount tree/crate", env!("CARGO_MANIFEST_DIR")));
    sh(
        at,
        r"
        cd tree
        cp -a /usr/include/linux /usr/include/x86_64-linux-gnu/sys . 2>/dev/null || cp -a /usr/include/linux .
        mkdir -p docs && cp -a /usr/share/doc/git* docs/ 2>/dev/null || cp -a /usr/share/doc/a* docs/
        ln -s ../linux docs/link; ln -s /nonexistent docs/dangling; ln linux/fs.h docs/hard.h
        mkfifo docs/fifo
        printf x > 'docs/a name with  spaces'; printf y > $'docs/new\nline'; printf z > $'docs/\xff\xfe'
        chmod 4755 docs/hard.h; chmod 000 $'docs/\xff\xfe'; touch -d '1969-12-31 23:59:58.5' docs/hard.h
        setfattr -n user.color -v blue docs/hard.h
        truncate -s 3G docs/sparse; printf end | dd of=docs/sparse bs=1 seek=2999999999 conv=notrunc status=none
        ",
    );
}

const SAME: &str = "rsync -aHAXn --checksum --delete --itemize-changes --exclude sparse";

#[test]
fn copies_are_the_same_after_a_remount() {
    let cluster = Cluster::start();
    let work = cluster.root().join("work");
    std::fs::create_dir(&work).unwrap();
    real_tree(&work);
    let mount = cluster.mount("m");
    sh(&work, &format!("cp -a --sparse=always tree {}/", mount.path().display()));
    sh(&work, &format!("diff -r --no-dereference -x fifo -x sparse tree {}/tree", mount.path().display()));
    mount.unmount();

    let mount = cluster.mount("m");
    let there = mount.path().join("tree");
    sh(&work, &format!("diff -r --no-dereference -x fifo -x sparse tree {}", there.display()));
    let differences = sh(&work, &format!("{SAME} tree/ {}/", there.display()));
    assert_eq!(differences, "", "rsync would still change something");
    let sparse =
        sh(&there, "stat -c '%s %b' docs/sparse; dd if=docs/sparse bs=1 skip=2999999999 count=3 status=none");
    let (sizes, end) = sparse.split_once('\n').unwrap();
    assert_eq!(end, "end");
    let blocks: u64 = sizes.split_once(' ').unwrap().1.trim().parse().unwrap();
    assert!(blocks < 100_000, "a hole takes {blocks} blocks");
    mount.unmount();
}

#[test]
fn tar_and_rsync_go_both_ways() {
    let cluster = Cluster::start();
    let work = cluster.root().join("work");
    std::fs::create_dir(&work).unwrap();
    real_tree(&work);
    sh(&work, "rm tree/docs/sparse");
    let mount = cluster.mount("m");
    let m = mount.path().display().to_string();
    sh(
        &work,
        &format!(
            "tar --xattrs --xattrs-include='*' -cf - tree | tar --xattrs --xattrs-include='*' -xpf - -C {m}"
        ),
    );
    sh(
        &work,
        &format!(
            "mkdir back && tar --xattrs --xattrs-include='*' -C {m} -cf - tree | tar --xattrs --xattrs-include='*' -xpf - -C back"
        ),
    );
    assert_eq!(sh(&work, &format!("{SAME} tree/ back/tree/")), "");
    sh(&work, &format!("rsync -aHAX --checksum tree/ {m}/rsynced/"));
    let second = sh(&work, &format!("rsync -aHAX --checksum --itemize-changes tree/ {m}/rsynced/"));
    assert_eq!(second, "", "the second rsync has something to send");
    sh(&work, &format!("rm -rf {m}/rsynced {m}/tree && [ -z \"$(ls -A {m})\" ]"));
    mount.unmount();
}

#[test]
fn git_sqlite_sed_and_dd() {
    let cluster = Cluster::start();
    let mount = cluster.mount("m");
    let m = mount.path();
    sh(
        m,
        r#"
        git init -q origin && cd origin && git config user.email a@example.org && git config user.name a
        cp -r /usr/include/linux . && git add . && git commit -qm one && sed -i 's/a/b/' linux/fs.h && git commit -qam two
        cd .. && git clone -q origin clone && cd clone && git fsck --full --strict && git gc -q && git fsck && [ -z "$(git status --porcelain)" ]
        "#,
    );
    sh(
        m,
        r#"
        for mode in delete wal; do
            sqlite3 $mode.db "pragma journal_mode=$mode; create table t(a integer primary key, b text);" >/dev/null
            for i in $(seq 20); do sqlite3 $mode.db "insert into t(b) select hex(randomblob(200)) from generate_series(1,100)"; done
            [ "$(sqlite3 $mode.db 'select count(*) from t; pragma integrity_check')" = $'2000\nok' ]
        done
        "#,
    );
    sh(
        m,
        r#"
        seq 1000 > numbers && sed -i 's/^5$/five/' numbers && grep -qx five numbers && [ "$(wc -l <numbers)" = 1000 ]
        printf old > f && printf new > .f.swp && sync .f.swp && mv f f~ && mv .f.swp f && [ "$(cat f f~)" = newold ]
        head -c 9000001 /dev/urandom > /tmp/tandem-it-dd.$$ && dd if=/tmp/tandem-it-dd.$$ of=direct bs=1M oflag=direct status=none
        cmp /tmp/tandem-it-dd.$$ direct && dd if=direct iflag=direct bs=1M status=none | cmp - /tmp/tandem-it-dd.$$; rm /tmp/tandem-it-dd.$$
        "#,
    );
    sh(
        m,
        r#"
        python3 - <<'P'
import mmap, os
with open('mapped', 'w+b') as f:
    f.truncate(10 << 20)
    m = mmap.mmap(f.fileno(), 0)
    for i in range(0, 10 << 20, 4096):
        m[i:i+8] = i.to_bytes(8, 'little')
    m.flush()
    assert os.pread(f.fileno(), 8, 8192) == (8192).to_bytes(8, 'little')
    m.close()
with open('mapped', 'rb') as f:
    data = f.read()
    assert len(data) == 10 << 20
    assert all(data[i:i+8] == i.to_bytes(8, 'little') for i in range(0, 10 << 20, 4096))
P
        exec 3>gone && rm gone && printf kept >&3 && [ "$(cat /proc/self/fd/3)" = kept ]
        "#,
    );
    mount.unmount();
}

#[test]
fn a_crate_is_built_and_tested() {
    let cluster = Cluster::start();
    let mount = cluster.mount("m");
    sh(
        mount.path(),
        r#"
        cargo init --quiet --offline --vcs none --name small small && cd small
        printf 'pub fn double(n: u32) -> u32 { 2 * n }\n#[test]\nfn doubles() { assert_eq!(double(2), 4); }\n' > src/lib.rs
        echo 'fn main() { println!("{}", small::double(21)); }' > src/main.rs
        export CARGO_TARGET_DIR=$PWD/target
        cargo build --quiet --offline && [ "$(target/debug/small)" = 42 ] && cargo test --quiet --offline
        touch src/lib.rs && cargo build --offline 2>&1 | grep -q Compiling
        [ "$(cargo build --offline 2>&1 | grep -c Compiling)" = 0 ]
        "#,
    );
    mount.unmount();
    let mount = cluster.mount("m");
    sh(mount.path(), "cd small && [ \"$(target/debug/small)\" = 42 ] && rm -r target");
    mount.unmount();
}

#[test]
fn a_large_directory_is_listed() {
    let cluster = Cluster::start();
    let mount = cluster.mount("m");
    sh(
        mount.path(),
        r#"
        mkdir many && cd many && python3 -c 'import os
for i in range(5000): os.mkdir(f"d{i:05}")'
        [ "$(ls | wc -l)" = 5000 ] && [ "$(ls -U | sort -u | wc -l)" = 5000 ] && [ "$(find . -type d | wc -l)" = 5001 ]
        "#,
    );
    mount.unmount();
    let mount = cluster.mount("m");
    sh(mount.path(), "[ \"$(ls -l many | wc -l)\" = 5001 ] && rm -r many && [ -z \"$(ls -A)\" ]");
    mount.unmount();
}
