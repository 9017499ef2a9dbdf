//! Tests of the rules as a whole: one by one in [`rules`], [`content`] and [`links`], and all together, in generated
//! sequences, against a small obvious [`model`] in [`sequences`].

mod content;
mod links;
mod model;
mod rules;
mod sequences;
mod store;
