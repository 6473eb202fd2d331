//! What runtimes write into an image.

pub mod header;
