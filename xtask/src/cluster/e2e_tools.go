//go:build tools

// What is built beside the tests, so that its modules are collected too.
package e2e

import _ "k8s.io/kubernetes/test/images/agnhost"
