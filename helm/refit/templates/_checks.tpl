{{/*
What the schema cannot say: values that fit by themselves and not together, and what the cluster does not have.
Each message names the value and what to do.
*/}}
{{- define "refit.checks" -}}
{{- $t := .Values.triton -}}
{{- if and $t.enabled (eq $t.device "gpu") (eq $t.image.repository "refit-triton") -}}
{{- fail "triton.device is gpu, and triton.image.repository is refit-triton, which has no GPU backends: set triton.image.repository and triton.image.tag to NVIDIA's tritonserver image (with TensorRT of the version that built your engines)" -}}
{{- end -}}
{{- if and $t.enabled $t.autoscaling.enabled (gt (int $t.autoscaling.minReplicas) (int $t.autoscaling.maxReplicas)) -}}
{{- fail (printf "triton.autoscaling.minReplicas (%d) is more than maxReplicas (%d): lower one or raise the other" (int $t.autoscaling.minReplicas) (int $t.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and $t.autoscaling.enabled (eq (len $t.autoscaling.metrics) 0) (not (dig "requests" "cpu" "" $t.resources)) -}}
{{- fail "triton.autoscaling is by CPU utilization, which is a share of the request: set triton.resources.requests.cpu, or give triton.autoscaling.metrics" -}}
{{- end -}}
{{- range $t.extraArgs -}}
{{- $flag := index (splitList "=" .) 0 -}}
{{- if has $flag (list "--model-repository" "--model-control-mode" "--load-model" "--exit-on-error" "--strict-readiness" "--exit-timeout-secs" "--http-restricted-api" "--grpc-restricted-protocol" "--http-port" "--grpc-port" "--metrics-port") -}}
{{- fail (printf "triton.extraArgs: %s is set by the chart, because releases depend on it; take it out" $flag) -}}
{{- end -}}
{{- end -}}
{{- if and $t.enabled $t.serviceMonitor.enabled (not (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/ServiceMonitor")) -}}
{{- fail "triton.serviceMonitor.enabled is true, and this cluster has no monitoring.coreos.com/v1 ServiceMonitor: install the Prometheus operator, or set it to false (helm template: --api-versions monitoring.coreos.com/v1/ServiceMonitor)" -}}
{{- end -}}
{{- if and .Values.kueue.enabled .Values.kueue.create -}}
{{- if not .Values.kueue.clusterQueue -}}
{{- fail "kueue.clusterQueue is empty: name the ClusterQueue whose quota stage pods take, or set kueue.create to false and kueue.queueName to an existing LocalQueue" -}}
{{- end -}}
{{- if not (or (.Capabilities.APIVersions.Has "kueue.x-k8s.io/v1beta2/LocalQueue") (.Capabilities.APIVersions.Has "kueue.x-k8s.io/v1beta1/LocalQueue")) -}}
{{- fail "kueue.enabled is true, and this cluster has no kueue.x-k8s.io LocalQueue: install Kueue, or set it to false (helm template: --api-versions kueue.x-k8s.io/v1beta1/LocalQueue)" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.quota.enabled (not (include "refit.stagePriority" .)) -}}
{{- fail "quota.enabled is true, and stage pods have no priority class to be counted by: set priorityClasses.create or stages.priorityClassName" -}}
{{- end -}}
{{- if and (not .Values.stages.serviceAccount.create) (not .Values.stages.serviceAccount.name) -}}
{{- fail "stages.serviceAccount.create is false and name is empty: stage pods would run as the namespace's default account; name an existing one without rights" -}}
{{- end -}}
{{- if not (hasKey .Values.stages.gpu.types "default") -}}
{{- fail "stages.gpu.types has no entry named default: it is what a stage gets that names no type of GPU" -}}
{{- end -}}
{{- $repository := dig "triton" "repository" "" .Values.profile.overrides -}}
{{- if and .Values.networkPolicies.enabled (contains "://" $repository) (not .Values.networkPolicies.releaseEgress) -}}
{{- fail (printf "profile.overrides.triton.repository is %s, and no release pod may reach it: add the store to networkPolicies.releaseEgress, e.g. [{ports: [{port: 443, protocol: TCP}]}]" $repository) -}}
{{- end -}}
{{- if hasKey .Values.stages.secrets "TRITON_CONTROL_KEY" -}}
{{- fail "stages.secrets.TRITON_CONTROL_KEY: name the Secret in triton.controlKey.existingSecret instead, so that server and releases agree" -}}
{{- end -}}
{{- end -}}
