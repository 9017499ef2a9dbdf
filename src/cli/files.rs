//! `tandem ls`, `stat`, `rm`, `mkdir`, `mv`

use std::io::{IsTerminal, Write};

use serde::Serialize;
use serde_json::json;
use tandemfs::api::files::{FileDetail, NodeState};
use tandemfs::id::{FileId, Ino};
use tandemfs::name::{Name, join_path, split_path};
use tandemfs::tree::{Inode, Kind, Mutation, NewNode, RenameMode};
use tandemfs::{Error, ErrorKind, Result};

use super::failure::{Outcome, Several};
use super::tree::{self, Tree};
use super::{Context, output};

/// How many names one batch removes.
const REMOVE_BATCH: usize = 256;

/// An object of a directory as `--json` shows it.
#[derive(Serialize)]
struct Listed {
    name: Option<Name>,
    file_id: FileId,
    kind: Kind,
    mode: String,
    uid: u32,
    gid: u32,
    links: u32,
    size: u64,
    created: String,
    modified: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl Listed {
    fn new(tree: &Tree, name: Option<Name>, inode: &Inode) -> Self {
        Self {
            name,
            file_id: tree.file_id(inode.ino),
            kind: inode.kind,
            mode: format!("{:04o}", inode.mode),
            uid: inode.uid,
            gid: inode.gid,
            links: inode.nlink,
            size: if inode.is_directory() { inode.entries } else { inode.size },
            created: inode.btime.to_rfc3339(),
            modified: inode.mtime.to_rfc3339(),
            target: inode.target.as_deref().map(|target| String::from_utf8_lossy(target).into_owned()),
        }
    }

    fn row(&self, mode: u32) -> Vec<String> {
        let mut name = self.name.as_ref().map_or_else(|| "/".to_owned(), Name::to_lossy);
        if let Some(target) = &self.target {
            name = format!("{name} -> {target}");
        }
        vec![
            permissions(self.kind, mode),
            self.size.to_string(),
            output::seconds_of(&self.modified),
            self.file_id.to_string(),
            name,
        ]
    }
}

/// `tandem ls`
pub(super) async fn list(context: &Context, path: &str, long: bool) -> Outcome {
    tree::with(context, true, async |tree| {
        let inode = tree.get(path).await?;
        let mut listed = Vec::new();
        if let (false, Some(name)) = (inode.is_directory(), split_path(path)?.pop()) {
            show_page(context, tree, &[(name, inode)], long, &mut listed)?;
        } else {
            let mut after = None;
            loop {
                let page = tree.page(inode.ino, after).await?;
                show_page(context, tree, &page.entries, long, &mut listed)?;
                after = page.entries.last().map(|(name, _)| name.clone());
                if page.complete {
                    break;
                }
            }
        }
        if context.json { output::print_json(&json!({ "path": path, "entries": listed })) } else { Ok(()) }
    })
    .await
}

/// Prints a page, or keeps it until all is there where it is to be one JSON document.
fn show_page(
    context: &Context,
    tree: &Tree,
    entries: &[(Name, Inode)],
    long: bool,
    listed: &mut Vec<Listed>,
) -> Outcome {
    if context.json {
        listed.extend(entries.iter().map(|(name, inode)| Listed::new(tree, Some(name.clone()), inode)));
        return Ok(());
    }
    if entries.is_empty() {
        return Ok(());
    }
    if long {
        let row =
            |(name, inode): &(Name, Inode)| Listed::new(tree, Some(name.clone()), inode).row(inode.mode);
        return output::print(&output::columns(&entries.iter().map(row).collect::<Vec<_>>()));
    }
    let mut out = std::io::stdout().lock();
    let escaped = out.is_terminal();
    let mut lines = Vec::new();
    for (name, _) in entries {
        if escaped {
            lines.extend_from_slice(output::escape(&name.to_lossy()).as_bytes());
        } else {
            lines.extend_from_slice(name.as_bytes());
        }
        lines.push(b'\n');
    }
    out.write_all(&lines).and_then(|()| out.flush()).map_err(output::output_failed)
}

/// `tandem stat`
pub(super) async fn stat(context: &Context, target: &str) -> Outcome {
    let found = tree::with(context, true, async |tree| {
        Ok(tree
            .find(target)
            .await?
            .map(|inode| (tree.file_id(inode.ino), Listed::new(tree, inode.name.clone(), &inode), inode)))
    })
    .await;
    let file_id = match found {
        Ok(Some((_, listed, inode))) if !inode.is_file() => {
            return context.show(&listed, |listed| output::columns(&[listed.row(inode.mode)]));
        }
        Ok(Some((file_id, ..))) => file_id.to_string(),
        Ok(None) => id_or_not_found(target)?,
        Err(failure) => return Err(failure),
    };
    let detail = context.client.stat_file(&file_id).await?;
    context.show(&detail, detail_text)
}

/// The id that an argument is which is no path.
pub(super) fn id_or_not_found(target: &str) -> Result<String> {
    target.parse::<FileId>().map(|id| id.to_string()).map_err(|_| Error::not_found(target))
}

fn detail_text(detail: &FileDetail) -> String {
    let file = &detail.file;
    let mut lines = vec![
        format!("path      {}", output::escape(&file.path)),
        format!("id        {}", output::escape(&file.file_id)),
        format!("size      {} ({})", file.size, output::size(file.size)),
        format!("sha256    {}", output::escape(&output::or_dash(file.sha256.as_deref()))),
        format!("created   {}", output::escape(&file.created)),
        format!("modified  {}", output::escape(&file.modified)),
        format!("replicas  {}", file.replicas),
    ];
    for block in &detail.blocks {
        let replicas: Vec<String> = block
            .replicas
            .iter()
            .map(|replica| match replica.state {
                NodeState::Healthy => format!("node {}", replica.node_id),
                state => format!("node {} ({state:?})", replica.node_id).to_lowercase(),
            })
            .collect();
        lines.push(format!("block     {} + {}: {}", block.offset, block.length, replicas.join(", ")));
    }
    if detail.blocks_truncated {
        lines.push("block     … and more".to_owned());
    }
    lines.join("\n")
}

/// `tandem rm`
pub(super) async fn remove(context: &Context, targets: &[String], recursive: bool, force: bool) -> Outcome {
    let removed = tree::with(context, false, async |tree| {
        let (mut removed, mut several) = (Vec::new(), Several::default());
        for target in targets {
            match remove_one(context, tree, target, recursive).await {
                Err(error) if force && error.kind() == ErrorKind::NotFound => {}
                Err(error) => several.note(Err(error.into()))?,
                Ok(()) => removed.push(target),
            }
        }
        Ok((json!({ "removed": removed }), several))
    })
    .await?;
    if context.json {
        output::print_json(&removed.0)?;
    }
    removed.1.finish()
}

async fn remove_one(context: &Context, tree: &mut Tree, target: &str, recursive: bool) -> Result<()> {
    let Some(inode) = tree.find(target).await? else {
        return context.client.delete_file(&id_or_not_found(target)?).await;
    };
    let Some((parent, name)) = tree.parent_of(target).await? else {
        return Err(Error::invalid("the root cannot be removed"));
    };
    if recursive && inode.is_directory() {
        empty(tree, inode.ino).await?;
    }
    let removal = removal(tree, parent.ino, name, inode.kind);
    // The subject of the daemon's error is a name; people gave a path.
    tree.change(removal).await.map_err(|error| Error::new(error.kind(), target))
}

fn removal(tree: &Tree, parent: Ino, name: Name, kind: Kind) -> Mutation {
    let (by, time) = (tree.by(), tree::now());
    if kind == Kind::Directory {
        Mutation::RemoveDirectory { parent, name, by, time }
    } else {
        Mutation::Unlink { parent, name, by, time }
    }
}

/// Removes all that is in a directory, the deepest first, holding one page of it in memory for each level.
async fn empty(tree: &mut Tree, directory: Ino) -> Result<()> {
    // Directories on the way down, each with the name that it has in the one above it.
    let mut way: Vec<(Ino, Option<Name>)> = vec![(directory, None)];
    while let Some((here, name)) = way.last().cloned() {
        let entries = tree.page(here, None).await?.entries;
        if entries.is_empty() {
            way.pop();
            if let (Some((above, _)), Some(name)) = (way.last(), name) {
                let removal = removal(tree, *above, name, Kind::Directory);
                tree.change(removal).await?;
            }
            continue;
        }
        for some in entries.chunks(REMOVE_BATCH) {
            let files = some.iter().filter(|(_, inode)| !inode.is_directory());
            let removals: Vec<_> =
                files.map(|(name, inode)| removal(tree, here, name.clone(), inode.kind)).collect();
            if !removals.is_empty() {
                tree.change_all(removals).await?;
            }
        }
        if let Some((name, inode)) = entries.into_iter().find(|(_, inode)| inode.is_directory()) {
            way.push((inode.ino, Some(name)));
        }
    }
    Ok(())
}

/// `tandem mkdir`
pub(super) async fn make_directories(context: &Context, paths: &[String], parents: bool) -> Outcome {
    let made = tree::with(context, false, async |tree| {
        let (mut made, mut several) = (Vec::new(), Several::default());
        for path in paths {
            match make_directory(tree, path, parents).await {
                Ok(()) => made.push(path),
                Err(error) => several.note(Err(error.into()))?,
            }
        }
        Ok((json!({ "made": made }), several))
    })
    .await?;
    if context.json {
        output::print_json(&made.0)?;
    }
    made.1.finish()
}

async fn make_directory(tree: &mut Tree, path: &str, parents: bool) -> Result<()> {
    let names = split_path(path)?;
    if !parents {
        let Some((parent, name)) = tree.parent_of(path).await? else {
            return Err(Error::already_exists("/"));
        };
        return create(tree, parent.ino, name).await.map_err(|error| Error::new(error.kind(), path));
    }
    let mut here = Ino::ROOT;
    for (depth, name) in names.iter().enumerate() {
        let found = match tree.lookup(here, name).await? {
            Some(found) => found,
            None => {
                match create(tree, here, name.clone()).await {
                    // Somebody else was faster.
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                tree.lookup(here, name).await?.ok_or_else(|| Error::not_found(path))?
            }
        };
        if !found.is_directory() {
            let taken = join_path(&names[..=depth]);
            return Err(Error::not_a_directory(String::from_utf8_lossy(&taken)));
        }
        here = found.ino;
    }
    Ok(())
}

async fn create(tree: &mut Tree, parent: Ino, name: Name) -> Result<()> {
    let ino = tree.new_ino().await?;
    let (by, time) = (tree.by(), tree::now());
    tree.change(Mutation::Create { parent, name, ino, node: NewNode::Directory, mode: 0o755, by, time }).await
}

/// `tandem mv`
pub(super) async fn rename(context: &Context, old: &str, new: &str, no_clobber: bool) -> Outcome {
    tree::with(context, false, async |tree| {
        let mode = if no_clobber { RenameMode::NoReplace } else { RenameMode::Replace };
        Ok(rename_in(tree, old, new, mode).await?)
    })
    .await?;
    if context.json { output::print_json(&json!({ "old": old, "new": new })) } else { Ok(()) }
}

/// Renames; into the new path, if that is a directory.
pub(super) async fn rename_in(tree: &mut Tree, old: &str, new: &str, mode: RenameMode) -> Result<()> {
    let Some((parent, name)) = tree.parent_of(old).await? else {
        return Err(Error::invalid("the root cannot be renamed"));
    };
    let (new_parent, new_name) = match tree.find(new).await? {
        Some(directory) if directory.is_directory() => (directory, name.clone()),
        _ => tree.parent_of(new).await?.ok_or_else(|| Error::invalid("the root cannot be replaced"))?,
    };
    let (by, time) = (tree.by(), tree::now());
    let (parent, new_parent) = (parent.ino, new_parent.ino);
    tree.change(Mutation::Rename { parent, name, new_parent, new_name, mode, by, time })
        .await
        .map_err(|error| Error::new(error.kind(), format!("{old} to {new}")))
}

/// Kind and permissions as ls(1) shows them.
fn permissions(kind: Kind, mode: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
    });
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{id_or_not_found, permissions};
    use tandemfs::tree::Kind;

    #[test]
    fn permissions_look_like_those_of_ls() {
        assert_eq!(permissions(Kind::File, 0o644), "-rw-r--r--");
        assert_eq!(permissions(Kind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(permissions(Kind::File, 0o4755), "-rwsr-xr-x");
        assert_eq!(permissions(Kind::File, 0o2640), "-rw-r-S---");
    }

    #[test]
    fn what_is_no_path_may_be_an_id() {
        assert_eq!(id_or_not_found("f1-2a").unwrap(), "f1-2a");
        assert!(id_or_not_found("f1-2A").is_err());
        assert!(id_or_not_found("notes.txt").is_err());
    }
}
