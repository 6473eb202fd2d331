//! What is decided for claims, case by case.
