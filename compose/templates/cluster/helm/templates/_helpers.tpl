{{/* The name that all objects begin with. */}}
{{- define "engineroom.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels that select pods: (dict "root" $ "component" "engine" "role" "head"); a role tells the pods of several nodes apart. */}}
{{- define "engineroom.selector" -}}
app.kubernetes.io/name: engineroom
app.kubernetes.io/instance: {{ include "engineroom.name" .root }}
app.kubernetes.io/component: {{ .component }}
{{- with .role }}
engineroom/role: {{ . }}
{{- end }}
{{- end }}

{{/* Metadata: (dict "root" $ "component" "engine" "suffix" "-head"). */}}
{{- define "engineroom.metadata" -}}
name: {{ include "engineroom.name" .root }}{{ .suffix }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "engineroom.selector" (dict "root" .root "component" .component) | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* True where one server has several nodes. */}}
{{- define "engineroom.clustered" -}}
{{- if gt (int .Values.engine.nodes) 1 }}true{{ end -}}
{{- end }}

{{/* True where there may be several servers. */}}
{{- define "engineroom.several" -}}
{{- if or .Values.autoscaling.kind (gt (int .Values.engine.replicas) 1) }}true{{ end -}}
{{- end }}

{{/* Seconds until the first token must be there, and all nodes before it. */}}
{{- define "engineroom.startSeconds" -}}
{{- $environment := .Values.engine.environment -}}
{{- add (int $environment.LAUNCH_START_SECONDS) (int (get $environment "LAUNCH_JOIN_SECONDS")) -}}
{{- end }}

{{/* preStop, then running answers are finished, then what is left has some seconds. */}}
{{- define "engineroom.graceSeconds" -}}
{{- add 5 (int .Values.engine.environment.LAUNCH_DRAIN_SECONDS) 15 }}
{{- end }}

{{/* The address at which people open the page. */}}
{{- define "engineroom.url" -}}
{{- with .Values.ingress.page -}}
{{- if .host }}{{ ternary "https" "http" (ne .tlsSecret "") }}://{{ .host }}{{ else }}{{ $.Values.page.url }}{{ end -}}
{{- end -}}
{{- end }}

{{/* An ordinary user without Kubernetes' own token, who owns the volumes through their group. */}}
{{- define "engineroom.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false # Kubernetes would add variables for every Service of the namespace
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 0
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch # not every file of the weights at every start
  seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* A read-only root and no capabilities. */}}
{{- define "engineroom.containerSecurity" -}}
securityContext:
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: { drop: [ALL] }
{{- end }}
