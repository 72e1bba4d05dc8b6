//! Calls by App ID, as to a Dapr sidecar: which server is meant, who the caller is, and what clients are told.

mod addressed;
mod attacks;
mod clients;
mod life;
mod rig;
