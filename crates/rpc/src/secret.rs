//! What is printed of messages that hold secrets.

use std::fmt;

use crate::v1::deliver_environment_request::Variable;

impl fmt::Debug for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Variable")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::DeliverEnvironmentRequest;

    #[test]
    fn values_are_not_printed() {
        let request = DeliverEnvironmentRequest {
            variables: vec![Variable {
                name: "TOKEN".to_owned(),
                value: "hunter2".to_owned(),
            }],
            ..DeliverEnvironmentRequest::default()
        };
        let printed = format!("{request:?}");
        assert!(
            printed.contains("TOKEN") && !printed.contains("hunter2"),
            "{printed}"
        );
    }
}
