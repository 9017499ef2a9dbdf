//! An independent recount of everything that is stored, from the engine's rows and the nodes' objects alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tandemd::meta::record::Place;
use tandemd::meta::{keys, record};
use tandemfs::id::{BlockId, Ino, VolumeId, VolumeKey};
use tandemfs::tree::{Chunk, Entry, Inode, Kind, Record, Usage};

use crate::history::Tree;
use crate::people;
use crate::world::World;

/// What was counted.
#[derive(Debug, Default)]
pub struct Count {
    inodes: BTreeMap<Ino, Inode>,
    entries: BTreeMap<Ino, BTreeMap<String, Entry>>,
    chunks: BTreeMap<Ino, BTreeMap<u64, Chunk>>,
    links: usize,
    orphans: Vec<Ino>,
    usage: Usage,
    /// Objects that the records place on nodes.
    pub copies: BTreeMap<u32, u64>,
    /// Blocks.
    pub blocks: u64,
}

type Found<T> = Result<T, String>;

/// Counts everything and compares; says what does not fit.
pub fn recount(world: &World) -> Found<Count> {
    let home = (*world.home.lock().unwrap()).ok_or("there is no volume")?;
    let mut count = load(world, home)?;
    count.check_tree()?;
    let references = count.references();
    check_references(world, home, &references)?;
    let data = count.check_blocks(world, home, &references)?;
    for number in 0..=world.people() {
        let found = match world.clients.get(number) {
            Some(client) => count.tree_of(client.state().directory, &data)?,
            None => match count.entries.get(&Ino::ROOT).and_then(|root| root.get(people::DIRECTORY)) {
                Some(entry) => count.tree_of(entry.ino, &data)?,
                None => Tree::default(),
            },
        };
        let history = world.history(number);
        let is_same = match world.clients.get(number) {
            Some(_) => found == *history.done(),
            None => people::same(&found, history.done()),
        };
        if history.is_open() || !is_same {
            let (found, expected) = (crate::work::show(&found), crate::work::show(history.done()));
            return Err(format!("client {number} left {expected}, and there is {found}"));
        }
    }
    Ok(count)
}

fn load(world: &World, home: VolumeId) -> Found<Count> {
    let mut count = Count::default();
    let prefix = keys::tree_prefix(home);
    for (key, value) in world.engine.rows(&prefix) {
        let record: Record = record::decode(&key, &value).map_err(|error| format!("{error:?}"))?;
        let rest = &key[prefix.len()..];
        let number =
            |at: usize| rest.get(at..at + 8).map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
        let ino = Ino(number(1));
        match record {
            Record::Usage(usage) => count.usage = usage,
            Record::Inode(inode) => drop(count.inodes.insert(ino, *inode)),
            Record::Entry(entry) => {
                let name = String::from_utf8_lossy(&rest[9..]).into_owned();
                count.entries.entry(ino).or_default().insert(name, entry);
            }
            Record::Chunk(chunk) => drop(count.chunks.entry(ino).or_default().insert(number(9), chunk)),
            Record::Xattr(_) => {}
            Record::Present if rest[0] == b'o' => count.orphans.push(ino),
            Record::Present => count.links += 1,
        }
    }
    Ok(count)
}

impl Count {
    fn check_tree(&self) -> Found<()> {
        let mut names: BTreeMap<Ino, u32> = BTreeMap::new();
        for (parent, entries) in &self.entries {
            for (name, entry) in entries {
                *names.entry(entry.ino).or_default() += 1;
                let inode = self.inodes.get(&entry.ino).ok_or(format!("{name} in {parent} leads nowhere"))?;
                if inode.kind != entry.kind {
                    return Err(format!("{name} in {parent} is not what its inode is"));
                }
            }
        }
        if !self.orphans.is_empty() {
            return Err(format!("orphans {:?} are not reaped", self.orphans));
        }
        let (mut bytes, mut further) = (0, 0);
        for (ino, inode) in &self.inodes {
            let entries = self.entries.get(ino);
            let named = names.get(ino).copied().unwrap_or(0);
            let expected = match inode.kind {
                Kind::Directory => {
                    2 + entries.map_or(0, |entries| {
                        entries.values().filter(|entry| entry.kind == Kind::Directory).count() as u32
                    })
                }
                _ => {
                    further += named.saturating_sub(1) as usize;
                    named
                }
            };
            if inode.nlink != expected || (named == 0 && *ino != Ino::ROOT) {
                return Err(format!("inode {ino} has {} links, but {expected} were counted", inode.nlink));
            }
            let held = entries.map_or(0, BTreeMap::len) as u64;
            if inode.is_directory() && inode.entries != held {
                return Err(format!("directory {ino} says {} entries, but has {held}", inode.entries));
            }
            let chunks = self.chunks.get(ino).into_iter().flat_map(BTreeMap::values);
            let allocated: u64 =
                chunks.flat_map(|chunk| &chunk.0).map(|extent| u64::from(extent.length)).sum();
            if inode.allocated != allocated {
                return Err(format!(
                    "inode {ino} says {} bytes of extents, but has {allocated}",
                    inode.allocated
                ));
            }
            bytes += allocated;
        }
        if let Some(ino) = self.chunks.keys().find(|ino| !self.inodes.contains_key(ino)) {
            return Err(format!("chunks of inode {ino}, which is not there"));
        }
        if self.links != further {
            return Err(format!("{} records of further links, but {further} were counted", self.links));
        }
        let inodes = self.inodes.len() as u64 - 1;
        if (self.usage.bytes, self.usage.inodes) != (bytes, inodes) {
            return Err(format!(
                "usage says {:?}, but {bytes} bytes and {inodes} inodes were counted",
                self.usage
            ));
        }
        Ok(())
    }

    fn references(&self) -> BTreeMap<BlockId, u64> {
        let mut references = BTreeMap::new();
        for extent in self.chunks.values().flat_map(BTreeMap::values).flat_map(|chunk| &chunk.0) {
            *references.entry(extent.block).or_default() += 1;
        }
        references
    }

    /// Every block that is referred to, and no other, has a record; its copies are where the record says, whole, and there
    /// are as many as there should be; nothing else is on any node.
    fn check_blocks(
        &mut self,
        world: &World,
        home: VolumeId,
        references: &BTreeMap<BlockId, u64>,
    ) -> Found<BTreeMap<BlockId, bytes::Bytes>> {
        let volume = keys::volume(home);
        let row = world.engine.rows(&volume).into_iter().next().ok_or("the volume has no record")?;
        let record: record::Volume = record::decode(&row.0, &row.1).map_err(|error| format!("{error:?}"))?;
        let mut objects: BTreeMap<(u32, BlockId), bytes::Bytes> = BTreeMap::new();
        for node in &world.nodes {
            objects.extend(node.objects().into_iter().map(|(id, bytes)| ((node.number(), id), bytes)));
        }
        let mut data = BTreeMap::new();
        let blocks = world.blocks();
        let mut inline = world.engine.rows(b"d").len();
        let mut members: BTreeMap<BlockId, (u32, u32)> = BTreeMap::new();
        for (id, block) in &blocks {
            if block.deleting || !(references.contains_key(id) || block.members > 0) {
                return Err(format!("{id:?} is not referred to, and has a record: {block:?}"));
            }
            match block.place {
                Place::Object => {}
                Place::Inline => {
                    let key = keys::inline(home, id);
                    let rows = world.engine.rows(&key);
                    let (_, row) = rows.first().ok_or(format!("{id:?} is not in the metadata"))?;
                    let bytes: serde_bytes::ByteBuf =
                        record::decode(&key, row).map_err(|error| format!("{error:?}"))?;
                    if BlockId::of(&record.key, &bytes) != *id {
                        return Err(format!("{id:?} has other bytes in the metadata"));
                    }
                    data.insert(*id, bytes.into_vec().into());
                    inline -= 1;
                    self.blocks += 1;
                    continue;
                }
                Place::Pack { block: pack, .. } => {
                    let (count, bytes) = members.entry(pack).or_default();
                    *count += 1;
                    *bytes += block.size;
                    continue;
                }
            }
            self.blocks += 1;
            if block.replicas.len() != world.settings.replicas as usize {
                return Err(format!("{id:?} is on {:?}", block.replicas));
            }
            for node in &block.replicas {
                let object = objects.remove(&(node.0, *id)).ok_or(format!("{id:?} is not on node {node}"))?;
                let bytes =
                    decode(&record.key, id, object).map_err(|why| format!("{id:?} on node {node}: {why}"))?;
                data.insert(*id, bytes);
                *self.copies.entry(node.0).or_default() += 1;
            }
        }
        if inline > 0 {
            return Err(format!("{inline} blocks too many lie in the metadata"));
        }
        for (id, block) in &blocks {
            let counted = members.get(id).copied().unwrap_or_default();
            if (block.members, block.member_bytes) != counted {
                return Err(format!("{id:?} has {counted:?} members and bytes of them: {block:?}"));
            }
            if let Place::Pack { block: pack, offset } = block.place {
                let within = offset as usize..(offset + block.size) as usize;
                let bytes = data.get(&pack).ok_or(format!("there is no pack {pack:?}"))?.slice(within);
                if BlockId::of(&record.key, &bytes) != *id {
                    return Err(format!("{id:?} has other bytes in its pack"));
                }
                data.insert(*id, bytes);
            }
        }
        if let Some(id) = references.keys().find(|id| !data.contains_key(*id)) {
            return Err(format!("{id:?} is referred to, and has no record"));
        }
        if let Some(((node, id), _)) = objects.first_key_value() {
            return Err(format!("{} stray objects: {id:?} on node {node}", objects.len()));
        }
        let garbage = world.engine.rows(b"g").len();
        let live: BTreeSet<&BlockId> = references.keys().collect();
        if garbage > live.len() {
            return Err(format!("{garbage} rows in the garbage index"));
        }
        Ok(data)
    }

    /// What is in a client's directory.
    fn tree_of(&self, directory: Ino, data: &BTreeMap<BlockId, bytes::Bytes>) -> Found<Tree> {
        let mut tree = Tree::default();
        for (name, entry) in self.entries.get(&directory).into_iter().flatten() {
            tree.names.insert(name.clone(), entry.ino);
            let inode = self.inodes.get(&entry.ino).ok_or("an entry leads nowhere")?;
            let mut content = vec![0; inode.size as usize];
            for extent in
                self.chunks.get(&entry.ino).into_iter().flat_map(BTreeMap::values).flat_map(|chunk| &chunk.0)
            {
                let bytes =
                    &data[&extent.block][extent.offset as usize..(extent.offset + extent.length) as usize];
                content[extent.start as usize..extent.end() as usize].copy_from_slice(bytes);
            }
            tree.files.insert(entry.ino, Arc::new(content));
        }
        Ok(tree)
    }
}

fn decode(key: &VolumeKey, id: &BlockId, object: bytes::Bytes) -> Found<bytes::Bytes> {
    let data = tandemfs::block::decode(id, object).map_err(|error| format!("{error:?}"))?;
    if BlockId::of(key, &data) != *id {
        return Err("the data is not what the id says".to_owned());
    }
    Ok(data)
}

fn check_references(world: &World, home: VolumeId, counted: &BTreeMap<BlockId, u64>) -> Found<()> {
    let mut prefix = b"r".to_vec();
    prefix.extend(home.0.to_be_bytes());
    let mut stored = BTreeMap::new();
    for (key, value) in world.engine.rows(&prefix) {
        let references: record::References =
            record::decode(&key, &value).map_err(|error| format!("{error:?}"))?;
        let id = key.last_chunk::<32>().copied().map(BlockId).ok_or("a key is too short")?;
        stored.insert(id, references.count);
    }
    if stored != *counted {
        let differ: Vec<_> = stored
            .keys()
            .chain(counted.keys())
            .filter(|id| stored.get(id) != counted.get(id))
            .map(|id| {
                let block = world.blocks().into_iter().find(|(other, _)| other == id).map(|(_, block)| block);
                format!("{id:?}: {:?} stored, {:?} counted, {block:?}", stored.get(id), counted.get(id))
            })
            .collect();
        let garbage = world.engine.rows(b"g").len();
        return Err(format!("reference counts, with {garbage} rows of garbage: {}", differ.join(", ")));
    }
    Ok(())
}
