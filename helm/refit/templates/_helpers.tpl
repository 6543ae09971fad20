{{/* Names. Cut to 47 characters: with the longest ending, -cluster-profile, that makes 63. */}}
{{- define "refit.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 47 | trimSuffix "-" -}}
{{- end -}}

{{- define "refit.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 47 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "refit.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 47 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 47 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Names of objects that have no namespace: two releases of one name may live in two namespaces. */}}
{{- define "refit.globalName" -}}
{{- $name := include "refit.fullname" . -}}
{{- if or (eq $name .Release.Namespace) (not .Release.Namespace) -}}{{ $name }}{{- else -}}{{ printf "%s-%s" .Release.Namespace $name }}{{- end -}}
{{- end -}}

{{/* Labels that pods are found by; they never change in the life of a release. Takes a list: context, component. */}}
{{- define "refit.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "refit.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* All labels of an object. Takes a list: context, component. */}}
{{- define "refit.labels" -}}
{{- $root := index . 0 -}}
{{ include "refit.selector" . }}
app.kubernetes.io/part-of: refit
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of pods: without versions, so that a new chart alone restarts no server. Takes a list: context, component. */}}
{{- define "refit.podLabels" -}}
{{ include "refit.selector" . }}
app.kubernetes.io/part-of: refit
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image's repository, the registry before it: (list $ "name"). */}}
{{- define "refit.repository" -}}
{{- with (index . 0).Values.imageRegistry -}}
{{- trimSuffix "/" . -}}/
{{- end -}}
{{- index . 1 -}}
{{- end -}}

{{/* An image's full name. Takes a list: context, image. */}}
{{- define "refit.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $repository := include "refit.repository" (list $root $image.repository) -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "refit.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Pod Security "restricted", for pods and for containers. */}}
{{- define "refit.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int64 .Values.security.runAsUser }}
runAsGroup: {{ int64 .Values.security.runAsGroup }}
fsGroup: {{ int64 .Values.security.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "refit.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: {{ . }}
capabilities:
  drop: [ALL]
{{- end -}}

{{/* A claim's name. Takes a list: context, the volume's key in storage. */}}
{{- define "refit.claim" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- default (printf "%s-%s" (include "refit.fullname" $root) $name) (index $root.Values.storage $name).existingClaim -}}
{{- end -}}

{{- define "refit.stageAccount" -}}
{{- $account := .Values.stages.serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-stage" (include "refit.fullname" .)) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{- define "refit.controlSecret" -}}
{{- default (printf "%s-triton-control" (include "refit.fullname" .)) .Values.triton.controlKey.existingSecret -}}
{{- end -}}

{{- define "refit.servingPriority" -}}
{{- $own := ternary (printf "%s-serving" (include "refit.globalName" .)) "" .Values.priorityClasses.create -}}
{{- default $own .Values.triton.priorityClassName -}}
{{- end -}}

{{- define "refit.stagePriority" -}}
{{- $own := ternary (printf "%s-stages" (include "refit.globalName" .)) "" .Values.priorityClasses.create -}}
{{- default $own .Values.stages.priorityClassName -}}
{{- end -}}

{{/* Labels that the operators put on every stage pod; the network policies and the quota find them by these. */}}
{{- define "refit.stageLabels" -}}
{{ include "refit.selector" (list . "stage") }}
app.kubernetes.io/part-of: refit
{{- end -}}

{{/* An API version: the first of a list that the cluster has, else the first. Takes a list: context, kind, versions. */}}
{{- define "refit.apiVersion" -}}
{{- $root := index . 0 -}}
{{- $kind := index . 1 -}}
{{- $found := "" -}}
{{- range $version := index . 2 -}}
{{- if and (not $found) ($root.Capabilities.APIVersions.Has (printf "%s/%s" $version $kind)) -}}
{{- $found = $version -}}
{{- end -}}
{{- end -}}
{{- default (index . 2 | first) $found -}}
{{- end -}}
