"""What a distillation will take: memory, bytes and seconds of a step, from shapes and rates, before anything runs.

`rates`: of devices and wires, published or measured. `scenario`: models, workload, layout, and ways of the data. `volumes`:
bytes of a step. `seconds`: closed formulas. `simulation`: the loop itself, in virtual time. `layouts`: devices dealt to the
roles. `advice`: what to change. `lines`: all of it for people. `configured`, `report`: of a configuration.
"""
