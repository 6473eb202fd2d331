//! What the demo and the benches run on: the stack, and Dormouse as it is shipped.

use anyhow::Result;

use crate::binaries::{self, Binaries, Profile};
use crate::image;
use crate::paths::Paths;
use crate::prereq::{self, Group};
use crate::stack::{self, Stack};

/// Installs what is missing, and builds everything: for one node, or with an image for a cluster.
pub(crate) fn prepare(paths: &Paths, cluster: bool) -> Result<(Stack, Binaries)> {
    if cluster {
        prereq::ensure(&[Group::Rust, Group::Stack, Group::Node, Group::Cluster])?;
        let binaries = binaries::build_image(paths, Profile::Release)?;
        image::build(paths, &binaries.dir, Profile::Release, image::REPOSITORY)?;
        binaries::build_cluster(paths, Profile::Release)?;
        Ok((stack::build_with_cluster(paths)?, binaries))
    } else {
        prereq::ensure(&[Group::Rust, Group::Stack, Group::Node])?;
        Ok((stack::build(paths)?, binaries::build_node(paths)?))
    }
}
