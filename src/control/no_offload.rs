//! The offload of a build without the feature `offload`.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::{Config, OffloadMode};
use crate::worker::{OffloadPlan, OffloadTotals};

const NONE: &str = "this build has no offload (feature `offload`)";

#[derive(Debug)]
pub(super) struct Offload {
    mode: OffloadMode,
}

#[derive(Debug, Default)]
pub(super) struct Started {
    pub(super) plans: Vec<OffloadPlan>,
    pub(super) interfaces: Arc<BTreeSet<u32>>,
}

impl Offload {
    pub(super) fn start(config: &Config, _: usize) -> Result<(Self, Started), String> {
        match config.offload.mode {
            OffloadMode::Require => Err(NONE.to_owned()),
            mode => Ok((Self { mode }, Started::default())),
        }
    }

    #[expect(clippy::unused_self, reason = "as with the feature")]
    pub(super) fn open_files(&self) -> u64 {
        0
    }

    #[expect(clippy::unused_self, reason = "as with the feature")]
    pub(super) fn follow_interfaces(&self) -> Option<Arc<BTreeSet<u32>>> {
        None
    }

    pub(super) fn show(&self, _: &OffloadTotals) -> Value {
        json!({ "mode": self.mode.as_str(), "active": false, "why_not": NONE })
    }

    #[expect(clippy::unused_self, reason = "as with the feature")]
    pub(super) fn outcomes(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    #[expect(clippy::unused_self, reason = "as with the feature")]
    pub(super) fn interfaces(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}
