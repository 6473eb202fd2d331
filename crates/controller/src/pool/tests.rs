//! What is decided for pools, case by case.
