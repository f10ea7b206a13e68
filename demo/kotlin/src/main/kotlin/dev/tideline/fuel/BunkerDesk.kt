/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.fuel

import dev.tideline.core.Events
import dev.tideline.core.InMemoryStore
import dev.tideline.core.Litres
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Store
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.change
import dev.tideline.core.gather
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.requireThat
import dev.tideline.core.roundTo
import dev.tideline.core.then
import dev.tideline.ships.ShipId

/** Identifies a fuel tank of the harbour. */
@JvmInline
value class TankId(val raw: String) {
    override fun toString(): String = raw
}

/** Names the grades of fuel and the most sulphur they may hold, in percent. */
enum class FuelGrade(val sulphurLimit: Double) { HEAVY(0.5), MARINE_DIESEL(0.1), GAS_OIL(0.001) }

/** Describes a tank and what is in it. */
data class Tank(
    val id: TankId,
    val grade: FuelGrade,
    val capacity: Litres,
    val content: Litres,
    val sulphur: Double,
) {
    val room: Litres get() = capacity - content

    /** Blends a delivery into the tank and averages the sulphur by volume. */
    fun blendedWith(volume: Litres, sulphurOfDelivery: Double): Tank {
        val mixed = content + volume
        val total = content.raw * sulphur + volume.raw * sulphurOfDelivery
        return copy(content = mixed, sulphur = if (mixed.raw > 0) total / mixed.raw else 0.0)
    }
}

/** Takes a volume out of one tank. */
data class Draw(val tank: TankId, val volume: Litres)

/** Tells that a ship was fuelled. */
data class ShipBunkered(
    val ship: ShipId,
    val grade: FuelGrade,
    val volume: Litres,
    override val at: Moment,
) : TideEvent

/** Tells that a tank was filled up from a barge. */
data class TankFilled(val tank: TankId, val volume: Litres, override val at: Moment) : TideEvent

/** Keeps the tanks. */
interface TankStore : Store<TankId, Tank> {
    /** Lists the tanks of a grade, the emptiest first. */
    fun listOfGrade(grade: FuelGrade): List<Tank>
}

/** Keeps the tanks in memory. */
class InMemoryTankStore : InMemoryStore<TankId, Tank>("tank", Tank::id), TankStore {
    override fun listOfGrade(grade: FuelGrade): List<Tank> =
        listWhere { it.grade == grade }.sortedBy { it.content }
}

/** Sells fuel to ships and keeps the tanks within their limits. */
class BunkerDesk(
    private val tanks: TankStore,
    private val events: Events,
    private val clock: TideClock,
) {
    private val log = ledger<BunkerDesk>()

    /** Fills a tank, or refuses when it would spill or when the blend would be too dirty. */
    fun fill(id: TankId, volume: Litres, sulphur: Double): Outcome<Tank> =
        tanks.findById(id)
            .then { tank ->
                requireThat(volume <= tank.room, Reason.FULL) { "tank $id has room for ${tank.room} only" }
                    .into { tank.blendedWith(volume, sulphur) }
            }
            .then { blend ->
                requireThat(blend.sulphur <= blend.grade.sulphurLimit, Reason.UNSAFE) {
                    "tank $id would hold ${blend.sulphur.roundTo(4)} percent of sulphur"
                }.then { tanks.replace(blend) }
            }
            .onDone {
                log.note("tank.filled", "tank" to id, "volume" to volume)
                events.publish(TankFilled(tank = id, volume = volume, at = clock.now()))
            }

    /** Fuels a ship out of as many tanks as it takes, emptying the emptiest first. */
    fun bunker(ship: ShipId, grade: FuelGrade, volume: Litres): Outcome<List<Draw>> =
        planDraws(grade, volume)
            .then { draws ->
                draws.map { draw -> tanks.change(draw.tank) { it.copy(content = it.content - draw.volume) } }
                    .gather()
                    .into { draws }
            }
            .onDone { draws ->
                log.note("ship.bunkered", "ship" to ship, "volume" to volume, "tanks" to draws.size)
                events.publish(
                    ShipBunkered(
                        ship = ship,
                        grade = grade,
                        volume = volume,
                        at = clock.now(),
                    ),
                )
            }

    private fun planDraws(grade: FuelGrade, volume: Litres): Outcome<List<Draw>> {
        var missing = volume
        val draws = mutableListOf<Draw>()
        for (tank in tanks.listOfGrade(grade).filter { it.content > Litres(0.0) }) {
            if (missing <= Litres(0.0)) break
            val drawn = minOf(missing, tank.content)
            draws += Draw(tank.id, drawn)
            missing -= drawn
        }
        return requireThat(missing <= Litres(0.0), Reason.FULL) { "$missing of $grade are missing" }
            .into { draws }
    }
}
