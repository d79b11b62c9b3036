{{- define "fairlead.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "fairlead.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "fairlead.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "fairlead.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What never changes in the life of a release: a selector may not. */}}
{{- define "fairlead.selectorLabels" -}}
app.kubernetes.io/name: {{ include "fairlead.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fairlead.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "fairlead.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: agent
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "fairlead.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "fairlead.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "fairlead.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The agent's configuration: as it was given, and what the pods' network needs. */}}
{{- define "fairlead.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if .Values.cni.enabled -}}
{{- $cni := dict "enabled" true "configDir" .Values.cni.confDir -}}
{{- $config = mergeOverwrite $config (dict "kubernetes" (dict "cni" $cni)) -}}
{{- else if dig "kubernetes" "cni" "enabled" false $config -}}
{{- fail "config.kubernetes.cni.enabled: set cni.enabled, which brings the plugin to the nodes as well" -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* Where the Secrets of BGP peers are read. */}}
{{- define "fairlead.secretsNamespace" -}}
{{- dig "bgp" "secretsNamespace" "kube-system" .Values.config | default "kube-system" -}}
{{- end -}}

{{/* The host part of what the kubelet asks: loopback, or the node's own address when all are listened on. */}}
{{- define "fairlead.probe" -}}
port: metrics
{{- if or (hasPrefix "127." .Values.listen.address) (eq .Values.listen.address "::1") }}
host: {{ .Values.listen.address | quote }}
{{- end }}
{{- end -}}
