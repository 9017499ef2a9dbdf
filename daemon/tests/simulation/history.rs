//! What a client has done to its directory: the states that others may see, by the order of its own changes.
//!
//! Every directory has one writer, so its history is a line. Whoever reads while nothing is under way must see the last state;
//! whoever reads beside a change may see the one before or the one after, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use tandemfs::id::Ino;

/// The content of a directory: names, and the bytes of the files that they lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Which file a name leads to.
    pub names: BTreeMap<String, Ino>,
    /// What is in a file.
    pub files: BTreeMap<Ino, Arc<Vec<u8>>>,
}

impl Tree {
    /// How many names a file has.
    pub fn links(&self, ino: Ino) -> usize {
        self.names.values().filter(|named| **named == ino).count()
    }

    /// Removes a name, and the file with its last name.
    pub fn remove(&mut self, name: &str) {
        if let Some(ino) = self.names.remove(name)
            && self.links(ino) == 0
        {
            self.files.remove(&ino);
        }
    }
}

/// The states of one directory.
#[derive(Clone, Debug)]
pub struct History {
    states: Vec<Tree>,
    acknowledged: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { states: vec![Tree::default()], acknowledged: 0 }
    }
}

impl History {
    /// The newest state, done or under way.
    pub fn last(&self) -> &Tree {
        &self.states[self.states.len() - 1]
    }

    /// The newest state that was acknowledged.
    pub fn done(&self) -> &Tree {
        &self.states[self.acknowledged]
    }

    /// A change begins.
    pub fn begin(&mut self, state: Tree) {
        assert_eq!(self.acknowledged + 1, self.states.len(), "one change at a time");
        self.states.push(state);
    }

    /// Whether a change is under way or in doubt.
    pub fn is_open(&self) -> bool {
        self.acknowledged + 1 < self.states.len()
    }

    /// The change has been acknowledged.
    pub fn acknowledge(&mut self) {
        self.acknowledged = self.states.len() - 1;
    }

    /// The change has been refused: it never happened.
    pub fn refuse(&mut self) {
        self.states.truncate(self.acknowledged + 1);
    }

    /// The number of the state that must be seen at least by now, and of the newest that may be.
    pub fn window(&self) -> (usize, usize) {
        (self.acknowledged, self.states.len() - 1)
    }

    /// Whether some state of a window is as `matches` says.
    pub fn any(&self, from: usize, to: usize, matches: impl Fn(&Tree) -> bool) -> bool {
        self.states[from..=to.min(self.states.len() - 1)].iter().any(matches)
    }
}
